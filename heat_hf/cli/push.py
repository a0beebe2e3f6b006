"""`heat-hf push`."""

from __future__ import annotations

import argparse

from heat_hf.cli import options
from heat_hf.cli.values import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `push`."""
    parser.add_argument("model", help="folder of a compressed model")
    parser.add_argument("repo_id", metavar="REPO", help="name or owner/name; made if it is not there")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="default: main; made if it is not there")
    parser.add_argument("--token", help="default: the one logged in with")
    parser.add_argument("--commit-message", default="Upload a model factorized by heat_hf", help="default: %(default)s")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    options.add_json(parser, "the commit")


def run(args: argparse.Namespace) -> int:
    """Push a folder as one commit."""
    from heat_hf.encoders.checkpoints.hub import push_folder

    names = ("private", "revision", "token", "commit_message", "create_pr")
    commit = push_folder(args.model, args.repo_id, **{name: getattr(args, name) for name in names})
    pushed = {"url": str(commit.commit_url), "commit": commit.oid, "pull_request": commit.pr_url}
    show(args, pushed, f"pushed: {commit.pr_url or commit.commit_url}")
    return 0
