"""The atlas of 10^5 neurons: what it takes to build, what it weighs, and how fast a browser shows it.

    python benchmarks/atlas.py [--keep FOLDER] [--rounds 7] [--results FILE.json]

`atlas_run` makes the tables of a run of 100,000 neurons in 50 layers, on 5,000 images, with ten lengths for
each and two simulators. Then the last stage runs as `neuroscribe run … --stage report`, and a headless
Chromium opens the atlas from disk and from `neuroscribe serve`, each time as if for the first time:

* **useful**: from the click on a link until the frame is painted that shows what the page is for: the
  scores by layer, the first rows of the table, the equation of a neuron;
* **search**: from a key in the search field until the frame is painted that shows the neurons found; `first`
  is the first search after the page was opened, `sort` a click on a column.

With `--keep` the run is kept there and used again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from atlas_run import IMAGE_COUNT, LAYERS, NEURONS, layer_name, write_run
from machine import machine
from playwright.sync_api import sync_playwright

from pipeline.rundir import Run
from pipeline.serve import AtlasServer

HERE = Path(__file__).resolve().parent
PAGES = {
    "overview": ("#/", "table.layers .ridge-cell svg"),
    "table": ("#/neurons", "a.row .term"),
    "neuron": (f"#/neuron/{layer_name(37)}/avg/1234", ".equation-box .term"),
}
QUERIES = ["d", "do", "dog", "striped", "striped dog", '"wet grass"', "+fur, -glass", "water, tree",
           "block3_7:1234", "nothing of the kind"]  # fmt: skip

#: Notes when the frame after an element has appeared was painted, in ms since the click.
WATCH = """selector => {
  const look = () => document.querySelector(selector)
    ? requestAnimationFrame(() => setTimeout(() => { window.useful = performance.now(); }))
    : requestAnimationFrame(look);
  look();
}"""

#: Milliseconds from an input or a click until the next frame is painted.
TIMED = """async (act) => {
  const field = document.getElementById("query");
  const before = performance.now();
  if (act.query !== undefined) {
    field.value = act.query;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  } else document.querySelector(act.click).click();
  await new Promise((done) => requestAnimationFrame(() => {
    const after = new MessageChannel();
    after.port1.onmessage = done;
    after.port2.postMessage(0);
  }));
  return performance.now() - before;
}"""


def build(config: Path, out: Path) -> dict[str, Any]:
    """Run the last stage in a process of its own, and say what it took."""
    shutil.rmtree(out / "atlas", ignore_errors=True)
    Run(out).withdraw("atlas")
    command = [sys.executable, "-m", "pipeline", "run", str(config), "--out", str(out)]
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    begun = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--stage", "report"],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the last stage ended with {os.waitstatus_to_exitcode(status)}")
    stage = Run(out).ledger()["stages"]["report"]
    return {
        "seconds of the stage": stage["seconds"],
        "seconds of the command, with Ray and planning": round(time.perf_counter() - begun, 1),
        "peak memory, MB": round(usage.ru_maxrss / 1024),
    }


def weigh(atlas: Path) -> dict[str, Any]:
    """Bytes by kind of file, and for each neuron all but pictures."""
    sizes: dict[str, int] = {}
    for file in atlas.rglob("*"):
        if file.is_file():
            inside = file.relative_to(atlas).parts
            kind = "/".join(inside[:2]) if inside[0] == "data" else inside[0]
            sizes[kind] = sizes.get(kind, 0) + file.stat().st_size
    pictures = {"thumbs", "data/maps"}  # the latter lie over the former
    rest = sum(size for kind, size in sizes.items() if kind not in pictures)
    return {
        "bytes for each neuron, without pictures": round(rest / (LAYERS * NEURONS)),
        "MB by kind": {kind: round(size / 1e6, 2) for kind, size in sorted(sizes.items())},
    }


@contextmanager
def served(out: Path) -> Iterator[str]:
    with AtlasServer(Run(out), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.address
        server.shutdown()


def measure(out: Path, rounds: int) -> dict[str, Any]:
    """Times in a browser, milliseconds."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    found: dict[str, Any] = {}
    with served(out) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        found["browser"] = f"Chromium {browser.version}, headless"
        for source, home in {"disk": (out / "atlas/index.html").as_uri(), "serve": address}.items():
            useful: dict[str, list[float]] = {name: [] for name in PAGES}
            for _ in range(rounds):
                for name, (fragment, selector) in PAGES.items():
                    page = browser.new_context().new_page()
                    page.add_init_script(f"({WATCH})({json.dumps(selector)})")
                    page.goto(home + fragment)
                    page.wait_for_function("window.useful")
                    useful[name].append(page.evaluate("window.useful"))
                    page.context.close()
            found[f"useful, from {source}"] = {
                name: spread(times) for name, times in useful.items()
            }
        found["search"] = _searches(browser, home, rounds)
        browser.close()
    return found


def _searches(browser: Any, home: str, rounds: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {"first": [], "later": [], "sort": []}
    by_query: dict[str, list[float]] = {query: [] for query in QUERIES}
    for number in range(rounds):
        page = browser.new_context().new_page()
        page.goto(home + "#/neurons")
        page.wait_for_selector("a.row .term")
        page.wait_for_timeout(300)
        queries = QUERIES[number % len(QUERIES) :] + QUERIES[: number % len(QUERIES)]
        for place, query in enumerate(queries):
            took = page.evaluate(TIMED, {"query": query})
            times["later" if place else "first"].append(took)
            by_query[query].append(took)
        page.evaluate(TIMED, {"query": ""})
        for column in ("length", "score", "score", "neuron"):
            times["sort"].append(page.evaluate(TIMED, {"click": f".head .{column} button"}))
        page.context.close()
    slowest = {query: round(max(found), 1) for query, found in by_query.items()}
    return {name: spread(found) for name, found in times.items()} | {"slowest by query": slowest}


def spread(times: list[float]) -> dict[str, float]:
    ordered = np.round(np.percentile(times, [50, 0, 100]), 1).tolist()
    return dict(zip(("median", "least", "greatest"), ordered, strict=True))


def targets(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """What was to be reached: by the median of the rounds; other work on the machine is in the greatest."""
    browser = facts["browser"]
    rows = [
        (f"{key}: {page}, ms", times, 1000)
        for key in browser
        if key.startswith("useful")
        for page, times in browser[key].items()
    ]
    rows += [
        (f"search: {key}, ms", browser["search"][key], 100) for key in ("first", "later", "sort")
    ]
    found = [{"what": what, **times, "target": limit} for what, times, limit in rows]
    size = facts["weight"]["bytes for each neuron, without pictures"]
    found.append({"what": "bytes for each neuron", "median": size, "target": 8192})
    return [{**one, "met": one["median"] < one["target"]} for one in found]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.keep or Path(temporary)
        config, out = folder / "config.yaml", folder / "run"
        if not (out / "manifest.json").exists():
            begun = time.perf_counter()
            write_run(folder)
            print(f"tables written in {time.perf_counter() - begun:.0f} s", flush=True)
        facts: dict[str, Any] = {
            "command": "python benchmarks/atlas.py",
            "neurons": LAYERS * NEURONS,
            "layers": LAYERS,
            "images": IMAGE_COUNT,
            "report": build(config, out),
            "weight": weigh(out / "atlas"),
            "browser": measure(out, chosen.rounds),
            "load of the machine just after": round(os.getloadavg()[0], 1),
            "machine": machine(),
            "versions": {
                name: metadata.version(name) for name in ("numpy", "pyarrow", "playwright")
            },
        }
    facts["targets"] = targets(facts)
    print(json.dumps(facts, indent=1, ensure_ascii=False))
    if chosen.results:
        chosen.results.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
