"""What methods cost, by the measurements in results/bench: the tables of docs/speed.md, and a paragraph for each method."""

from statistics import median

from field import METHOD, measured_case, of_methods, speed, variants

from ovss_bench.bench.cases import CLIP_ALONE
from ovss_bench.bench.view import methods_view, own, prompts_view, rates_view, shared_view, table
from ovss_bench.bench.ways import FILES, MEMORY_SIZE

UNMEASURED = "No measurement is stored: run `python tools/bench.py {} out=results/bench`, then `python docs/generate.py`."


def speed_tables() -> str:
    """For each machine: its description, how it was measured, and the ratios of all methods."""
    parts = []
    for measured in speed():
        machine, cases = measured["machine"], of_methods(measured["cases"])
        if not cases:  # this machine measured whole runs only
            continue
        threads = sorted({case["threads"] for case in cases.values()})
        rounds = [len(case["seconds"][METHOD]) for case in cases.values()]
        spread = " to ".join(map(str, sorted({min(rounds), max(rounds)})))
        load = median(load for case in cases.values() for load in case["load"])
        parts.append(
            f"{machine['device']} with {machine['processors']} CPUs, {', '.join(map(str, threads))} threads, torch "
            f"{machine['packages']['torch']}, Python {machine['python']}; medians of {spread} rounds; "
            f"load average {load:.0f} (median).\n\n{methods_view(cases)}"
        )
    return "\n".join(parts).strip()


def run_tables() -> str:
    """The measured cases of configs/bench, on each machine."""
    tables = []
    for measured in speed():
        cases = {name: case for name, case in measured["cases"].items() if not case["case"]["method"]}
        machine = f"{measured['machine']['device']}:\n\n" if len(speed()) > 1 else ""
        tables += [f"{machine}{table(cases)}\n{rates_view(cases)}".strip()] if cases else []
    return "\n\n".join(tables) or UNMEASURED.format("ade150 voc21 ade847 trunk_cache five demo")


def prompts_table() -> str:
    """How many prompts the methods on a concept segmenter decode."""
    tables = [prompts_view(each["cases"]).strip() for each in speed()]
    return next(filter(None, tables), UNMEASURED.format("sam3 segearth_ov3 active_sam"))


def shared_table() -> str:
    """The cost of the methods on CLIP alone in one run, and in separate runs."""
    cases = (each["cases"].get(CLIP_ALONE, {}) for each in speed())
    measured = next((case for case in cases if FILES in case.get("seconds", {})), None)
    return shared_view(measured).strip() if measured else UNMEASURED.format(CLIP_ALONE)


def cost(method: str) -> str:
    """The paragraph on a method's page."""
    others = [name for name in variants(method) if name != method]
    names = [name for name in (method, f"{method}:given", *others) if measured_case(name)]
    if not names:
        return "Not measured yet. [How costs are measured](../speed.md#methods)."
    paragraphs = [f"{f'`{name}`: ' if name in others else ''}{_sentences(name)}" for name in names]
    return " ".join([*paragraphs, "[How this is measured](../speed.md#methods)."])


def _sentences(name: str) -> str:
    result = measured_case(name)
    case, counts, operations = result["case"], result.get("counts", {}), own(result)
    needed = "the bare encoder passes"
    if "clip_windows" in counts:
        others = f" and {counts['other_passes']} of other networks" if counts["other_passes"] else ""
        needed = f"the bare encoder passes that it needs, {counts['clip_windows']} of CLIP{others}"
    elif "prompts" in counts:
        needed = f"the bare passes over image, texts and {counts['prompts']} prompts ({counts['skipped']:.0%} need no masks)"
    given = ", with features and attention maps given" if name.endswith(":given") else ""
    where = f"on {case['height']} × {case['width']} pixels with `threads={result['threads']}`"
    parts = [f"{result['ratios'][METHOD]['median']:.2f} times {needed}{given}, {where}."]
    if operations:
        parts.append(f"Outside the encoders, `{operations[0][0]}` takes the most time ({operations[0][1]:.0%} of the total).")
    if result.get("memory_mib"):
        height, width = MEMORY_SIZE
        parts.append(f"Peak memory of the process at {height} × {width} pixels: {result['memory_mib']['peak']} MiB.")
    return " ".join(parts)
