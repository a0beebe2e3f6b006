"""Registers the quantization method with Transformers, and factorized layers with PEFT, without importing either.

Transformers looks a method up in two dictionaries of one module, its registry. If the registry is loaded already, the method
is entered at once; else when it is loaded, by whomever. What is entered stands for a class, and imports it when Transformers
first uses it: the registry is loaded in the middle of Transformers' modeling code, where nothing that needs this code can be
imported.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from heat_hf.encoders.checkpoints.names import METHOD

REGISTRY = "transformers.quantizers.auto"
MODELS = "transformers.modeling_utils"
CONFIGURATIONS = "transformers.configuration_utils"
AUTO_CLASSES = "transformers.models.auto.auto_factory"
TUNERS = "peft.tuners.tuners_utils"
QUANTIZERS = {
    "torchao.quantization.quant_api": "quantize_",
    "optimum.quanto.quantize": "quantize",
    "torch.ao.quantization.quantize": "quantize_dynamic",
}  # functions that take every linear of a model, and say nothing of other layers


class _LazyClass:
    """Stands for a class until it is called, or asked for an attribute such as `from_dict`."""

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    def _load(self) -> Any:  # noqa: ANN401
        return getattr(import_module(self._module), self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return self._load()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._load(), name)


def install() -> None:
    """Register now what is imported already, and the rest once it is imported. Doing it again changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for name, register in _REGISTER.items():
        if name in sys.modules:
            register(import_module(name))  # waits where another thread is in the middle of importing it


def _register(registry: ModuleType) -> None:
    registry.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = _LazyClass("heat_hf.encoders.config", "FactorizedConfig")
    registry.AUTO_QUANTIZER_MAPPING[METHOD] = _LazyClass("heat_hf.integrations.transformers", "HeatQuantizer")


def _present_layers(tuners: ModuleType) -> None:
    """Let every method of PEFT ask which modules its targets mean, when it is made and when it gets another adapter.

    PEFT has no registry for this: a configuration can be told of foreign layers, but saved ones forget it.
    """
    base = tuners.BaseTuner
    if hasattr(base, "_heat_hf"):
        return
    make, inject = base.__init__, base.inject_adapter

    @functools.wraps(make)
    def __init__(self: Any, model: Any, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401, N807
        config = peft_config[adapter_name] if isinstance(peft_config, dict) else peft_config
        import_module("heat_hf.integrations.peft").resolve_targets(self, config, model)
        make(self, model, peft_config, adapter_name, *args, **kwargs)

    @functools.wraps(inject)
    def inject_adapter(self: Any, model: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        import_module("heat_hf.integrations.peft").resolve_targets(self, self.peft_config[adapter_name], model)
        inject(self, model, adapter_name, *args, **kwargs)

    base.__init__, base.inject_adapter, base._heat_hf = __init__, inject_adapter, True


def _present_models(models: ModuleType) -> None:
    """Let what a model is saved as follow from its layers, not from where it came from; and damaged ones be told of.

    Transformers asks only a model's own quantizer, which a copy, a model around it or an unpickled one need not have.
    """
    for name in ("save_pretrained", "push_to_hub"):
        _wrap(models.PreTrainedModel, name, "heat_hf.integrations.saving")
    _wrap(models.PreTrainedModel, "from_pretrained", "heat_hf.integrations.loading")


def _load_configurations(configurations: ModuleType) -> None:
    _wrap(configurations.PreTrainedConfig, "get_config_dict", "heat_hf.integrations.loading")


def _load_by_auto_classes(classes: ModuleType) -> None:
    """Each `Auto…` class that is there already has a copy of the method; others copy it from the first of them."""
    base = classes._BaseAutoModelClass
    for cls in (base, *base.__subclasses__()):
        if "from_pretrained" in vars(cls):
            _wrap(cls, "from_pretrained", "heat_hf.integrations.loading")


def _wrap(cls: type, name: str, module: str) -> None:
    """Let the function of its name in a module of ours call a method of Transformers; doing it again changes nothing."""
    held = vars(cls)[name]
    method = held.__func__ if isinstance(held, classmethod) else held
    if hasattr(method, "_heat_hf"):
        return

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return getattr(import_module(module), name)(method, self, *args, **kwargs)

    wrapper._heat_hf = True  # type: ignore[attr-defined]
    setattr(cls, name, classmethod(wrapper) if isinstance(held, classmethod) else wrapper)


def _watch_quantizer(module: ModuleType) -> None:
    """Let a function that quantizes linears say which layers it left as they were, wherever it was imported to."""
    package, name = module.__name__.rpartition(".")[0], QUANTIZERS[module.__name__]
    function = vars(module)[name]
    if hasattr(function, "_heat_hf"):
        return

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        result = function(*args, **kwargs)
        model = args[0] if args else kwargs.get("model")
        import_module("heat_hf.integrations.quantizers").tell_left_out(model, f"{package}.{name}")
        return result

    wrapper._heat_hf = True  # type: ignore[attr-defined]
    for holder in list(sys.modules.values()):
        if isinstance(holder, ModuleType) and vars(holder).get(name) is function:
            setattr(holder, name, wrapper)


_REGISTER: dict[str, Callable[[ModuleType], None]] = {
    REGISTRY: _register,
    CONFIGURATIONS: _load_configurations,
    MODELS: _present_models,
    AUTO_CLASSES: _load_by_auto_classes,
    TUNERS: _present_layers,
    **dict.fromkeys(QUANTIZERS, _watch_quantizer),
}


class _Finder(MetaPathFinder):
    """Finds these modules as the finders after this one do, and registers what is ours once one is loaded."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in _REGISTER:
            return None
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next((spec for finder in others if (spec := finder.find_spec(fullname, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Loads a module as its own loader does, then registers what is ours. An error while loading is passed on."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader  # who looks for the module's source later finds its own loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        _REGISTER[module.__name__](module)
