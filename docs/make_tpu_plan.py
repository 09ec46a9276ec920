"""Renews the tables of docs/tpu-plan.md from docs/tpu-plan.json and computes missing plans.

    python docs/make_tpu_plan.py                            # the missing plans: can take hours
    python docs/make_tpu_plan.py --list                     # which plans are done
    python docs/make_tpu_plan.py --only "edit 256 v5e:1x1"  # computes this plan again
    python docs/make_tpu_plan.py --page                     # only renews the tables

Both files are written after each plan, so a stopped run continues where it was. `plan` itself
caches compiled layers. A plan that fails, because it does not fit a chip for instance, is recorded
with the compiler's last message.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RECORD, PAGE = HERE / "tpu-plan.json", HERE / "tpu-plan.md"
SD15 = ("--config", "configs/sd15.py")
COLAB = ("--config", "configs/colab_v5e1.py", "--topology", "v5e:1x1")
ONE_CHIP = ("v5e:1x1", "v5p:1x1x1", "v6e:1x1")
SIXTEEN_CHIPS = ("v6e:4x4", "v5e:4x4", "v5p:2x2x4")
FOUR_CHIPS = "v5e:2x2"
PLANNED_SOURCES = ("models", "diffusion", "inference", "parallel", "planning", "training")

# The generated part of the page stands between these two comments.
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def plans() -> dict[str, tuple[str, ...]]:
    """Name -> arguments of `plan`; quick plans first."""
    table: dict[str, tuple[str, ...]] = {}
    for size in ("512", "256"):
        edit = (*SD15, "--edit", "--size", size)
        for topology in ONE_CHIP:
            table[f"edit {size} {topology}"] = (*edit, "--topology", topology)
        name = f"edit {size} {FOUR_CHIPS}, frames over 4 chips"
        table[name] = (*edit, "--topology", FOUR_CHIPS)
    table["colab v5e:1x1"] = COLAB
    for remat in ("products", "none"):
        table[f"colab v5e:1x1, remat {remat}"] = (*COLAB, "--remat", remat)
    for size in ("512", "256"):
        for topology in SIXTEEN_CHIPS:
            arguments = (*SD15, "--topology", topology, "--size", size)
            table[f"train {size} {topology}"] = arguments
    for name in (
        "edit 512 v6e:1x1",
        "edit 512 v5e:1x1",
        "edit 256 v5e:2x2, frames over 4 chips",
    ):
        table[f"{name}, own effort"] = (*table[name], "--effort", "0")
    for name in ("edit 256 v5e:1x1", "colab v5e:1x1"):
        table[f"{name}, whole"] = (*table[name], "--full", "--effort", "0")
    return table


def run_plan(arguments: tuple[str, ...]) -> dict:
    """The JSON record of `plan`, or {"error": its last line}."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "ivid2vid_jax.plan", *arguments, "--output", str(file)]
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=HERE.parent)
        if file.is_file():
            return json.loads(file.read_text())
    sys.stderr.write(result.stderr)
    lines = [
        line
        for line in result.stderr.splitlines()
        if line.strip() and not line.startswith(("For simplicity, JAX", "---"))
    ]
    return {"error": lines[-1] if lines else f"exit code {result.returncode}"}


def current_commit() -> str:
    """The short hash of HEAD, marked if the sources that a plan depends on differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, cwd=HERE, check=True
        ).stdout.strip()

    sources = [f"../ivid2vid_jax/{package}" for package in PLANNED_SOURCES]
    changed = git("status", "--porcelain", "--", *sources, "../configs")
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def table_row(name: str, record: dict) -> str:
    """One line of the table of plans."""
    if "error" in record:
        cells = [name, record["error"].replace("|", "/"), *[""] * 9, record["commit"]]
        return "| " + " | ".join(cells) + " |"
    plan, times = record["plan"], record["seconds_at_peak"]
    cells = [
        name,
        f"{'whole' if plan['whole'] else 'by layers'}, {float(record['arguments']['effort']):g}",
        f"{sum(plan['held'].values()) / 2**30:.1f}",
        f"{plan['flops'] / 1e12:.2f}",
        f"{plan['moved'] / 1e9:.1f}",
        f"{sum(plan['sent'].values()) / 1e9:.2f}",
        *(f"{times[resource]:.4f}" for resource in ("arithmetic", "HBM", "interconnect")),
        f"{times['HBM'] / times['arithmetic']:.2f}",
        f"{plan['seconds']:.0f}",
        record["commit"],
    ]
    return "| " + " | ".join(cells) + " |"


def compiler_rows(records: dict) -> list[str]:
    """A line for each compiler, with the commits whose plans it computed."""
    commits: dict[tuple[str, ...], set[str]] = {}
    for record in records.values():
        if "plan" in record:
            key = (*record["versions"].values(),)
            commits.setdefault(key, set()).add(f"{record['commit']} ({record['date']})")
    return [
        "| " + " | ".join([*versions, ", ".join(sorted(commits[versions]))]) + " |"
        for versions in sorted(commits)
    ]


def tables(records: dict) -> str:
    """The tables of all plans and of the compilers, in Markdown."""
    missing = [name for name in plans() if name not in records]
    lines = [
        "| plan | compiled, effort | GiB per chip | TFLOP | HBM traffic, GB | sent, GB "
        "| arithmetic, s | HBM, s | interconnect, s | HBM / arithmetic | compiled in, s | commit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(table_row(name, records[name]) for name in plans() if name in records),
        "",
    ]
    lines += ["Not computed yet: " + "; ".join(missing) + ".", ""] if missing else []
    lines += [
        "| jax | jaxlib | compiler | commits (date) |",
        "|---|---|---|---|",
        *compiler_rows(records),
        "",
    ]
    return "\n".join(lines)


def write_page(records: dict) -> None:
    """Replaces the tables of the page; the prose around them stays."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"error: {PAGE} lacks the comments {BEGIN} and {END}")
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(records)}\n{END}{after}")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=plans(), nargs="+", help="compute these plans again")
    parser.add_argument("--list", action="store_true", help="print which plans are done")
    parser.add_argument("--page", action="store_true", help="only renew the tables")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Computes the missing plans and renews the page."""
    args = parse_args(argv)
    records = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    todo = args.only or [name for name in plans() if "plan" not in records.get(name, {})]
    if args.list:
        for name, arguments in plans().items():
            print(f"{'to do' if name in todo else 'done':5s} {name}: {' '.join(arguments)}")
        return
    for name in [] if args.page else todo:
        print(f"\n=== {name}", flush=True)
        record = run_plan(plans()[name])
        records[name] = record | {
            "commit": current_commit(),
            "date": datetime.date.today().isoformat(),
        }
        RECORD.write_text(json.dumps(records, indent=1) + "\n")
        write_page(records)
    write_page(records)
    print(tables(records))


if __name__ == "__main__":
    main()
