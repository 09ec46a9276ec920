"""Asks the TPU compiler for the plans that docs/tpu-plan.md records, one after the other, and writes that table anew after each.

    python docs/make_tpu_plan.py            # what docs/tpu-plan.json does not hold yet: hours, on a small machine
    python docs/make_tpu_plan.py --list     # what there is to do
    python docs/make_tpu_plan.py --only "edit 256 v5e:1x1"  # this one, anew

Run it again to go on where it stopped: a plan is done where the record has it; the compiled layers of one that was stopped are in plan's own cache.
Layers come first, whole programs last. A plan that failed, for a program that does not fit into a chip say, is recorded with the compiler's last words.
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
SD15, COLAB = ("--config", "configs/sd15.py"), ("--config", "configs/colab_v5e1.py")
ONE, SIXTEEN = (
    {"v5e": "v5e:1x1", "v5p": "v5p:1x1x1", "v6e": "v6e:1x1"},
    {"v5e": "v5e:4x4", "v5p": "v5p:2x2x4", "v6e": "v6e:4x4"},
)


def plans() -> dict[str, tuple[str, ...]]:
    """Name -> what `plan` is asked; the quick ones first."""
    found, sizes = {}, ("512", "256")
    for size in sizes:
        found |= {
            f"edit {size} {ONE[kind]}": (*SD15, "--topology", ONE[kind], "--edit", "--size", size)
            for kind in ONE
        }
        found[f"edit {size} v5e:2x2, frames over 4 chips"] = (
            *SD15,
            "--topology",
            "v5e:2x2",
            "--edit",
            "--size",
            size,
        )
    found["colab v5e:1x1"] = (*COLAB, "--topology", "v5e:1x1")
    found |= {
        f"colab v5e:1x1, remat {name}": (*found["colab v5e:1x1"], "--remat", name)
        for name in ("products", "none")
    }
    found |= {
        f"train {size} {SIXTEEN[kind]}": (*SD15, "--topology", SIXTEEN[kind], "--size", size)
        for size in sizes
        for kind in ("v6e", "v5e", "v5p")
    }
    found |= {
        f"{name}, own effort": (*found[name], "--effort", "0")
        for name in (
            "edit 512 v6e:1x1",
            "edit 512 v5e:1x1",
            "edit 256 v5e:2x2, frames over 4 chips",
        )
    }
    found["edit 256 v5e:1x1, whole"] = (
        *SD15,
        "--topology",
        "v5e:1x1",
        "--edit",
        "--size",
        "256",
        "--full",
        "--effort",
        "0",
    )
    found["colab v5e:1x1, whole"] = (*COLAB, "--topology", "v5e:1x1", "--full", "--effort", "0")
    return found


def asked(words: tuple[str, ...]) -> dict:
    """The plan's own record, or {"error": its last line}."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "ivid2vid_jax.plan", *words, "--output", str(file)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=HERE.parent)
        if file.is_file():
            return json.loads(file.read_text())
    sys.stderr.write(done.stderr)
    lines = [
        line
        for line in done.stderr.splitlines()
        if line.strip() and not line.startswith(("For simplicity, JAX", "---"))
    ]
    return {"error": lines[-1] if lines else f"exit code {done.returncode}"}


def commit() -> str:
    def git(*words):
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, cwd=HERE, check=True
        ).stdout.strip()

    changed = git(
        "status",
        "--porcelain",
        "--",
        *(
            f"../ivid2vid_jax/{part}"
            for part in ("models", "diffusion", "planning", "training", "runtime.py")
        ),
        "../configs",
    )
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def row(name: str, found: dict) -> str:
    """A line of the table."""
    if "error" in found:
        return (
            f"| {name} | {found['error'].replace('|', '/')} |" + " |" * 9 + f" {found['commit']} |"
        )
    plan, times = found["plan"], found["seconds_at_peak"]
    memory = sum(plan["held"].values()) / 2**30
    amounts = [
        f"{plan['flops'] / 1e12:.2f}",
        f"{plan['moved'] / 1e9:.1f}",
        f"{sum(plan['sent'].values()) / 1e9:.2f}",
    ]
    seconds = [f"{times[what]:.4f}" for what in ("arithmetic", "HBM", "interconnect")]
    proof = f"{'whole' if plan['whole'] else 'by layers'}, {float(found['arguments']['effort']):g}"
    ratio = f"{times['HBM'] / times['arithmetic']:.2f}"
    return (
        "| "
        + " | ".join(
            [
                name,
                proof,
                f"{memory:.1f}",
                *amounts,
                *seconds,
                ratio,
                f"{plan['seconds']:.0f}",
                found["commit"],
            ]
        )
        + " |"
    )


def page(record: dict) -> str:
    """The table of a record."""
    made = {name: found for name, found in record.items() if "plan" in found}
    versions = sorted(
        {(found["commit"], found["date"], *found["versions"].values()) for found in made.values()}
    )
    missing = [name for name in plans() if name not in record]
    lines = [
        "# What the TPU compiler says",
        "",
        "Written by `python docs/make_tpu_plan.py`, which asks `python -m ivid2vid_jax.plan` for one plan after the other; the whole records, with the",
        "memory of a chip by what holds it, lie in [tpu-plan.json](tpu-plan.json). No TPU was there: these are bytes and operations of compiled programs,",
        "over the chips' published peaks, not measured times.",
        "",
        "`train`: the optimiser step of `configs/sd15.py`, 64 clips of 16 frames over 16 chips. `edit`: one sampling step of 16 frames at SD 1.5's size,",
        "three guidance branches. `colab`: the optimiser step of `configs/colab_v5e1.py`. The number is the side in pixels. By layers: the sum of layers",
        "compiled one by one, UNPROVEN for the whole, and compiled in the seconds that this run spent beside its cache; whole: compiled as one program.",
        "",
        "Effort is the compiler's, 0 being a run's own. With -1 it takes a fifth of the time and moves more, most where arrays are small enough to stay on the",
        "chip. So bytes at -1 are an upper bound of a run's; some plans were asked both ways. What splash attention's kernels read again (keys and values for each",
        "block of queries) is counted since commit daa3201, as is `transformer_in`'s recomputation.",
        "",
        "| plan | compiled, effort | GiB a chip | TFLOP | GB of HBM moved | GB sent | arithmetic, s | HBM, s | interconnect, s | HBM / arithmetic | compiled in, s | commit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(row(name, record[name]) for name in plans() if name in record),
        "",
    ]
    lines += ["Not asked yet: " + "; ".join(missing) + ".", ""] if missing else []
    lines += [
        "| commit | date | jax | jaxlib | compiler |",
        "|---|---|---|---|---|",
        *("| " + " | ".join(each) + " |" for each in versions),
    ]
    lines += [
        "",
        "## What it changed",
        "",
        "- The plain prototype of the edit step at 256x256 moved 122 GB for 13.6 TFLOP, an HBM time of 2.2 times the arithmetic's.",
        "- Training on 16 chips: left to itself the compiler multiplies by split weights piece by piece, in loops that move all activations at every turn.",
        "  The first temporal transformer at 512x512 moved 52 GB a clip so; with the weights gathered whole (`runtime.OPTIONS`), 10 GB",
        "  (`python -m pytest -m slow tests/planning/test_tpu_compiler.py -k whole`).",
        "- The 16 GB recipe did not fit with an EMA of the weights: 16.8 GiB, compiled whole. It has none now.",
        "- Reading what each layer moves, instruction by instruction, led to these. Edit step at 512x512 on v6e, by layers, effort -1, each on top of the last:",
        "",
        "| change (commit 127935c) | GB of HBM moved |",
        "|---|---|",
        "| before, with splash attention's repeated reads counted | 281 |",
        "| 1x1 convolutions as matrix products: no copies between the layouts of both | 268 |",
        "| splash attention on arrays whose innermost axis are the tokens: heads of 40 are not padded to 128 lanes | 251 |",
        "| the softmax of text attention divides last: 16-bit weights between the products instead of 32-bit ones | 246 |",
        "| layer and group norms take both moments in one pass (16-bit results alone), beside what makes their input | 223 |",
        "| temporal convolutions as 1D convolutions of every position instead of products over three shifted copies | 207 |",
        "| temporal transformers: positions are folded before the first projection, not after | 201 |",
        "",
        "  Of a temporal convolution layer of 320 channels at 64x64 trained with `--optim.remat block`, 3 clips: 28.5 GB before, 12.7 GB after. Of the 16 GB recipe's",
        "  step, by layers at effort -1: 314 GB before, 252 after.",
        "",
        "Where the table says more than a chip's memory, a recipe does not fit as it is: `--optim.accumulation 2`, or more chips. v6e has the most arithmetic for its",
        "bandwidth (560 operations a byte; v5e 241, v5p 166): there HBM binds at every size.",
    ]
    return "\n".join(lines) + "\n"


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=plans(), nargs="+", help="these, anew")
    parser.add_argument("--list", action="store_true", help="says what is done and what is not")
    args = parser.parse_args(argv)
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    wanted = args.only or [name for name in plans() if "plan" not in record.get(name, {})]
    if args.list:
        print(
            "\n".join(
                f"{'to do' if name in wanted else 'done ':5s} {name}: {' '.join(words)}"
                for name, words in plans().items()
            )
        )
        return
    for name in wanted:
        print(f"\n=== {name}", flush=True)
        record[name] = asked(plans()[name]) | {
            "commit": commit(),
            "date": datetime.date.today().isoformat(),
        }
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        PAGE.write_text(page(record))
    print(page(record))


if __name__ == "__main__":
    main()
