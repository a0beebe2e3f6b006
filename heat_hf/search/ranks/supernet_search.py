"""The steps of a SuperNet search: its space, its model, its training, and the measuring of its SubNets."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm.auto import tqdm

from heat_hf.encoders.checkpoints.storage import atomic_file
from heat_hf.encoders.linears import swap_modules
from heat_hf.encoders.resuming import newest_checkpoint
from heat_hf.formats import Rank, TensorShape, get_format
from heat_hf.formats.decomposition import decompose, rank_errors
from heat_hf.formats.layer import FactorizedLinear
from heat_hf.formats.size import MatrixSize
from heat_hf.search.journal import Journal
from heat_hf.search.parallel import DECIMALS, handed_out, jobs
from heat_hf.search.ranks.problem import Problem
from heat_hf.search.ranks.space import Choice, RankSpace, setting_options, undominated
from heat_hf.search.ranks.supernet import RankSuperNet, SuperNetArguments, SuperNetTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = "supernet.safetensors"
PARTS = 8  # of what each job of joblib evaluates: what is done is kept part by part


class Measured(NamedTuple):
    """A SubNet's row in the journal."""

    accuracy: float


def supernet_space(problem: Problem, shapes: Mapping[MatrixSize, TensorShape], arguments: SuperNetArguments) -> RankSpace:
    """Options of the SuperNet's tensors: one format, no dense matrix."""
    (format,), options = problem.formats, {}
    codec = get_format(format)
    for name, linear in problem.linears.items():
        shape = shapes[MatrixSize.of(linear)]

        def errors(ranks: Sequence[Rank], linear: Any = linear, shape: TensorShape = shape) -> list[float]:  # noqa: ANN401
            return rank_errors(codec, linear.weight, shape, ranks, problem.solver)

        candidates = setting_options(format, shape, problem.units, errors, execution=problem.execution)
        options[name] = tuple(setting for setting, _ in undominated(problem.costs, name, candidates))
    return RankSpace(problem.costs, options).within(arguments.least_share, arguments.largest_share)


def supernet_model(problem: Problem, space: RankSpace) -> PreTrainedModel:
    """A copy of the model whose tensors have, for each rank index, the largest rank of the space."""
    model, swapped = copy.deepcopy(problem.model), {}
    for name in problem.linears:
        linear: Any = model.get_submodule(name)
        settings = [setting for setting in space.options[name] if setting is not None]
        largest = tuple(map(max, zip(*(setting.rank for setting in settings), strict=True)))
        codec, shape = settings[-1].codec.solved_as, settings[-1].shape  # whose ranks can be cut
        setting = replace(settings[-1], format=codec.name, rank=codec.clip_rank(shape, largest))
        moments = () if problem.statistics is None else problem.statistics.moments(name, problem.loss_aware)
        factorization = decompose(codec, linear.weight, shape, setting.rank, problem.solver, *moments)
        swapped[linear] = FactorizedLinear.from_linear(linear, setting, factorization, problem.costs.tokens)
    swap_modules(model, swapped)
    return model


def train_supernet(
    supernet: RankSuperNet,
    teacher: PreTrainedModel,
    arguments: SuperNetArguments,
    rows: Any,  # noqa: ANN401
    collator: Any,  # noqa: ANN401
    folder: Path,
) -> None:
    """Train a SuperNet, or go on where an interrupted training stopped, or load it if it is done.

    Args:
        supernet: trained in place.
        teacher: the dense model.
        arguments: of Trainer; checkpoints go to `folder`.
        rows: tokenized training rows.
        collator: of Trainer.
        folder: keeps checkpoints while it trains, then `supernet.safetensors`.
    """
    from safetensors.torch import load_file, save_file

    done = folder / WEIGHTS
    cores = dict(supernet.model.named_parameters())
    if not done.exists():
        checkpoints = str(folder / "checkpoints")
        in_folder = replace(arguments, output_dir=checkpoints)
        trainer = SuperNetTrainer(supernet, teacher, args=in_folder, train_dataset=rows, data_collator=collator)
        trainer.train(resume_from_checkpoint=newest_checkpoint(Path(checkpoints)) is not None)
        if trainer.is_world_process_zero():
            with atomic_file(done) as file:
                save_file({name: parameter.detach().contiguous() for name, parameter in cores.items()}, file)
            shutil.rmtree(checkpoints, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
    for name, tensor in load_file(done).items():
        cores[name].data.copy_(tensor)


def evaluate_subnets(
    supernet: RankSuperNet, choices: Sequence[Choice], quality: Callable[[PreTrainedModel], float], journal: Journal
) -> list[float]:
    """Quality of SubNets with the SuperNet's cores, those a journal has not got yet; each process takes a share.

    Within a process, `joblib.parallel_config` may hand them out.
    """
    names = [",".join(map(str, choice)) for choice in choices]
    measured = journal.read(Measured)
    todo = [number for number, name in enumerate(names) if name not in measured]
    journal.wait()  # until every process knows what is left
    with (
        journal.share(todo) as mine,
        tqdm(total=len(mine), desc="Evaluating SubNets", unit="SubNet", disable=not journal.main) as bar,
    ):
        for number, score in _scores(supernet, {number: choices[number] for number in mine}, quality):
            measured[names[number]] = [Measured(score)]
            journal.write(names[number], measured[names[number]])
            bar.update()
    journal.wait()
    measured |= journal.read(Measured)
    return [measured[name][0].accuracy for name in names]


def _scores(
    supernet: RankSuperNet, choices: Mapping[int, Choice], quality: Callable[[PreTrainedModel], float]
) -> Iterator[tuple[int, float]]:
    """Numbers of SubNets with their scores, as they come; several in one call elsewhere, since the SuperNet goes with them."""
    numbers = list(choices)
    parts = len(numbers) if jobs() == 1 else min(len(numbers), PARTS * jobs())
    calls = [(supernet, {number: choices[number] for number in numbers[part::parts]}, quality) for part in range(parts)]
    for scores in handed_out(_scored, calls):
        yield from scores.items()


def _scored(
    supernet: RankSuperNet, choices: Mapping[int, Choice], quality: Callable[[PreTrainedModel], float]
) -> dict[int, float]:
    """Scores of some SubNets by their numbers."""
    scores = {}
    for number, choice in choices.items():
        supernet.set(choice, supernet.slices(number))
        scores[number] = round(quality(supernet.model), DECIMALS)
    return scores
