"""The command line: `neuroscribe COMMAND`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from core.errors import NeuroscribeError
from pipeline.exit_codes import exit_code
from pipeline.log import say, use_format
from pipeline.signals import stop_signals

DEMO_OUT, SERVE_PORT = "runs/demo", 8117


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1, 2, 3, 4 or 75, as docs/operations.md says."""
    chosen = _parser().parse_args(arguments)
    use_format(getattr(chosen, "log_format", "text"))
    try:
        with stop_signals():
            code: int = chosen.command(chosen)
        return code
    except BrokenPipeError:
        return 0
    except (NeuroscribeError, KeyboardInterrupt) as error:
        text = str(error) or "interrupted; run again to resume"
        code = exit_code(error)
        kind = type(error).__name__
        say(f"neuroscribe: {text}", "error", level="error", kind=kind, exit_code=code)
        return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neuroscribe",
        description="Explain every neuron of a vision network by a short weighted sum of concepts.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    def logs(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--log-format",
            choices=["text", "json"],
            default="text",
            help="lines on stderr: text, or a JSON object each",
        )

    def settings(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("config", metavar="CONFIG.yaml")
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY.PATH=VALUE",
            help="a key beside those of the file, its value as in YAML; may be given again",
        )

    run = add("run", _run, "Carry out a configuration; start it again to resume.")
    settings(run)
    logs(run)
    run.add_argument("--out", required=True, metavar="RUN", help="run directory or URL")
    run.add_argument(
        "--stage", action="extend", nargs="+", metavar="NAME", help="only these stages"
    )
    run.add_argument(
        "--max-seconds", type=float, metavar="N", help="stop in order then; start again to resume"
    )
    run.add_argument(
        "--force", action="store_true", help="redo these stages, or all, although they are fresh"
    )

    plan = add("plan", _plan, "What a run would take on this machine; touches nothing.")
    settings(plan)
    plan.add_argument("--out", metavar="RUN", help="count only what is not fresh there")
    plan.add_argument("--prices", metavar="FILE", help="a table of machines and prices")
    plan.add_argument("--json", action="store_true", help="the same as JSON")

    refit = add(
        "refit-length", _refit_length, "Choose other lengths in a finished run; it records nothing."
    )
    refit.add_argument("run", metavar="RUN")
    refit.add_argument(
        "--by", choices=["tolerance", "one-standard-error", "cross-validation"], help="the rule"
    )
    refit.add_argument("--tolerance", type=float, help="validation correlation to give up")
    logs(refit)

    demo = add("demo", _demo, "Explain a real network on images that the program draws itself.")
    demo.add_argument("--out", default=DEMO_OUT, metavar="RUN", help=f"default: {DEMO_OUT}")
    demo.add_argument("--images", type=int, default=None, help="how many images to draw")
    logs(demo)

    selftest = add(
        "selftest", _selftest, "Explain a network whose explanations are known, and compare."
    )
    selftest.add_argument("--out", metavar="FOLDER", help="keep images and run there")

    doctor = add("doctor", _doctor, "What this machine and storage can do, and what is missing.")
    doctor.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="also what it names")
    doctor.add_argument("--out", default="runs", metavar="RUN", help="where runs go; default: runs")
    doctor.add_argument("--ray", action="store_true", help="start Ray too, which takes seconds")
    doctor.add_argument("--json", action="store_true", help="the same as JSON")

    status = add("status", _status, "Stages, progress, ledger and failures of a run.")
    status.add_argument("run", metavar="RUN")
    status.add_argument("--json", action="store_true", help="the same facts as JSON")

    layers = add("layers", _layers, "List the layers of a network with shapes and neurons.")
    layers.add_argument("model", metavar="MODEL", help="timm:NAME, torchvision:NAME, python:…")
    layers.add_argument(
        "--weights", default="random:0", help="default: random:0, nothing is loaded"
    )
    layers.add_argument("--match", nargs="+", metavar="PATTERN", help="only layers that match")

    concepts = add("concepts", _concepts, "Concepts of lists, one a line, and where they are from.")
    concepts.add_argument("lists", nargs="+", metavar="LIST", help="as in the configuration")

    show = add("show", _show, "One neuron in the terminal.")
    show.add_argument("run", metavar="RUN")
    show.add_argument("neuron", metavar="LAYER:NEURON")

    search = add("search", _search, "Neurons whose explanation uses a concept.")
    search.add_argument("run", metavar="RUN")
    search.add_argument("text", metavar="TEXT")
    search.add_argument("--limit", type=int, default=20)

    score = add("score", _score, "Score explanations made elsewhere, on a run's test images.")
    score.add_argument("run", metavar="RUN")
    score.add_argument("--explanations", required=True, metavar="FILE", help="CSV or Parquet")
    score.add_argument("--layer", metavar="NAME", help="only this layer's explanations")
    logs(score)

    export = add("export", _export, "Write a run's explanations as CSV files.")
    export.add_argument("run", metavar="RUN")
    export.add_argument("--format", choices=["csv"], default="csv", help="default: csv")
    export.add_argument("--out", metavar="FOLDER", help="folder or URL; default: RUN/export")

    diff = add("diff", _diff, "Which neurons changed meaning from one run to another.")
    diff.add_argument("run_a", metavar="RUN_A")
    diff.add_argument("run_b", metavar="RUN_B")
    diff.add_argument("--limit", type=int, default=20, help="neurons to list; default: 20")
    diff.add_argument("--out", metavar="FILE", help="write the whole table there, as Parquet")
    diff.add_argument("--atlas", metavar="FOLDER", help="write a page there, with links to atlases")

    serve = add("serve", _serve, "The atlas on loopback, until Ctrl-C.")
    serve.add_argument("run", metavar="RUN")
    serve.add_argument(
        "--port", type=int, default=SERVE_PORT, help=f"default: {SERVE_PORT}; 0 takes a free one"
    )
    return parser


def _run(chosen: argparse.Namespace) -> int:
    from pipeline.config import load_config
    from pipeline.run import execute
    from pipeline.show import summary_lines

    config = load_config(chosen.config, chosen.set)
    summary = execute(config, chosen.out, chosen.stage, chosen.max_seconds, chosen.force)
    print("\n".join(summary_lines(summary)))
    return summary.exit_code


def _plan(chosen: argparse.Namespace) -> int:
    from pipeline.config import load_config
    from pipeline.estimate import estimate
    from pipeline.estimate_page import estimate_facts, estimate_lines
    from pipeline.price import read_prices

    prices = read_prices(chosen.prices)
    found = estimate(load_config(chosen.config, chosen.set), prices, chosen.out)
    if chosen.json:
        print(json.dumps(estimate_facts(found), indent=2))
    else:
        print("\n".join(estimate_lines(found)))
    return 0


def _refit_length(chosen: argparse.Namespace) -> int:
    from pipeline.run import refit_length
    from pipeline.show import summary_lines

    summary = refit_length(chosen.run, chosen.by, chosen.tolerance)
    print("\n".join(summary_lines(summary)))
    return summary.exit_code


def _demo(chosen: argparse.Namespace) -> int:
    from pipeline.demo.run import prepare_demo
    from pipeline.run import execute
    from pipeline.show import summary_lines

    config = prepare_demo(Path(chosen.out), chosen.images)
    summary = execute(config, chosen.out)
    print("\n".join(summary_lines(summary)))
    return summary.exit_code


def _selftest(chosen: argparse.Namespace) -> int:
    from pipeline.selftest import check_lines, selftest

    found = selftest(chosen.out)
    print("\n".join(check_lines(found)))
    return 0 if all(check.passed for check in found) else 1


def _doctor(chosen: argparse.Namespace) -> int:
    from dataclasses import asdict

    from pipeline.doctor import doctor_lines, examine

    checks = examine(chosen.config, chosen.out, chosen.ray)
    if chosen.json:
        print(json.dumps({"checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print("\n".join(doctor_lines(checks)))
    return 2 if any(check.state == "problem" for check in checks) else 0


def _status(chosen: argparse.Namespace) -> int:
    from pipeline.rundir import Run
    from pipeline.show import status_facts, status_lines

    run = Run.open(chosen.run)
    if chosen.json:
        print(json.dumps(status_facts(run), indent=2))
    else:
        print("\n".join(status_lines(run)))
    return 0


def _layers(chosen: argparse.Namespace) -> int:
    from actors.layers import describe_layers, match_layers
    from actors.preprocessing import split_transform
    from actors.targets import load_target
    from pipeline.planning import image_size
    from pipeline.show import layer_lines

    target = load_target(chosen.model, chosen.weights, base=Path.cwd())
    infos = describe_layers(target.module, image_size(split_transform(target.transform)))
    if chosen.match:
        kept = set(match_layers([info.name for info in infos], chosen.match))
        infos = [info for info in infos if info.name in kept]
    print("\n".join(layer_lines(infos)))
    return 0


def _concepts(chosen: argparse.Namespace) -> int:
    from pipeline.concept_lists import provenance, read_concepts, union

    lists = read_concepts(chosen.lists)
    print("\n".join(union(lists)))
    for row in provenance(lists):
        print(
            f"{row['list']}: {row['concepts']:,} concepts, {row['added']:,} of them new; "
            f"{row['source']}; licence: {row['licence']}",
            file=sys.stderr,
        )
    return 0


def _show(chosen: argparse.Namespace) -> int:
    from pipeline.rundir import Run
    from pipeline.show import neuron_lines

    print("\n".join(neuron_lines(Run.open(chosen.run), chosen.neuron)))
    return 0


def _search(chosen: argparse.Namespace) -> int:
    from pipeline.rundir import Run
    from pipeline.show import search_lines

    print("\n".join(search_lines(Run.open(chosen.run), chosen.text, chosen.limit)))
    return 0


def _score(chosen: argparse.Namespace) -> int:
    from pipeline.score import score_file, scored_lines

    print("\n".join(scored_lines(score_file(chosen.run, chosen.explanations, chosen.layer))))
    return 0


def _export(chosen: argparse.Namespace) -> int:
    from pipeline.export import export_csv
    from pipeline.rundir import Run
    from pipeline.storage import Folder

    run = Run.open(chosen.run)
    print("\n".join(export_csv(run, Folder(chosen.out or run.folder.path("export")))))
    return 0


def _diff(chosen: argparse.Namespace) -> int:
    from pipeline.atlas.compare import build_comparison
    from pipeline.diff import diff_lines, diff_runs, table_place
    from pipeline.rundir import Run
    from pipeline.storage import Folder

    out = table_place(chosen.out) if chosen.out else None
    diff = diff_runs(Run.open(chosen.run_a), Run.open(chosen.run_b))
    print("\n".join(diff_lines(diff, chosen.limit)))
    if out is not None:
        folder, name = out
        folder.write_table(name, diff.table)
        print(f"\nTable: {folder.path(name)}")
    if chosen.atlas is not None:
        page = Folder(chosen.atlas)
        build_comparison(diff, page.url, lambda name, content: page.write(name, content))
        print(f"\nPage: {page.path('index.html')}")
    return 0


def _serve(chosen: argparse.Namespace) -> int:
    from pipeline.rundir import Run
    from pipeline.serve import serve

    serve(Run.open(chosen.run), chosen.port)
    return 0
