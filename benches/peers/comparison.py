"""What a comparison found, as JSON and as text."""

import statistics

import peer


class Comparison:
    """kiln's runs and the peers' reports, as far as there are any yet."""

    def __init__(self, args, load: float, first: dict):
        self.args, self.load = args, load
        # As `kiln_bench.bench` gives them: the first, and later the last.
        self.kiln = [first]
        self.reports: list[dict] = []
        # Each with `peer` and `reason`.
        self.partial: list[dict] = []
        self.missing: list[dict] = []
        # Why kiln's last run has no results.
        self.failure: str | None = None

    def ours(self, key: tuple[str, int, int]) -> dict:
        """kiln's side of a row."""
        found = [run["cases"][key] for run in self.kiln if key in run["cases"]]
        times, runs = [ms for ms, _ in found], [count for _, count in found]
        return {"kiln_ms": statistics.fmean(times) if times else None, "kiln_runs": runs}

    def spread(self) -> float | None:
        """How far kiln's two runs are apart, at most."""
        if len(self.kiln) < 2:
            return None
        first, last = (run["cases"] for run in self.kiln)
        pairs = [(first[key][0], last[key][0]) for key in first.keys() & last.keys()]
        return max((abs(a - b) / (a + b) * 2 for a, b in pairs), default=0.0)

    def rows(self) -> list[dict]:
        rows = []
        for report in self.reports:
            for case in report["measured"]:
                ours = self.ours((case["what"], case["batch"], case["length"]))
                ratio = case["ms"] / ours["kiln_ms"] if ours["kiln_ms"] else None
                rows.append({"peer": report["name"]} | case | ours | {"ratio": ratio})
        return sorted(rows, key=lambda row: (row["what"], row["batch"], row["length"], row["ms"]))

    def as_dict(self) -> dict:
        return {
            "kiln": self.kiln[0]["about"],
            "kiln_spread": self.spread(),
            "kiln_failure": self.failure,
            "dtype": self.args.dtype,
            "steps": self.args.steps,
            "warm_up_s": peer.WARM_UP,
            "most_runs": peer.MAX_RUNS,
            "load": self.load,
            "peers": {
                report["name"]: {"version": report["peer"], "device": report["device"]}
                for report in self.reports
            },
            "rows": self.rows(),
            "skipped": [
                {"peer": report["name"]} | case for report in self.reports for case in report["skipped"]
            ],
            "partial": self.partial,
            "missing": self.missing,
        }

    def text(self) -> str:
        about, args = self.kiln[0]["about"], self.args
        spread = self.spread()
        if spread is None:
            twice = f"kiln's last run failed, so its times are from the first alone: {self.failure}"
        else:
            twice = f"kiln's times are the means of its two runs, which are up to {spread:.0%} apart"
        parts = [
            f"{about['model']}: kiln in {about['dtype']} on {about['device']}, tier {about['tier']};"
            f" peers in {args.dtype}",
            f"driver {about['driver']}",
            *(f"{report['name']}: {report['peer']} on {report['device']}" for report in self.reports),
            f"decode: the mean of {args.steps} steps; medians of at most {peer.MAX_RUNS} runs, of which none"
            f" begins after {args.seconds:g} s (kiln: 2 s)",
            twice,
            "`kiln / peer` is tokens/s over tokens/s: above 1 kiln is faster\n",
            table(self.rows()),
            *(f"partial: {one['peer']}: {one['reason']}" for one in self.partial),
            *(f"skipped: kiln {s['batch']} x {s['length']}: {s['reason']}" for s in about["skipped"]),
        ]
        for report in self.reports:
            for case in report["skipped"]:
                which = f"{case['mode']} {case['what']} {case['batch']} x {case['length']}"
                parts.append(f"skipped: {report['name']} {which}: {case['reason']}")
        for one in self.missing:
            install = f"; to install: {one['install']}" if one["install"] else ""
            parts.append(f"no report: {one['peer']}: {one['reason']}{install}")
        return "\n".join(parts)


def table(rows: list[dict]) -> str:
    header = ["what", "batch", "tokens", "peer", "mode", "ms", "tokens/s", "runs"]
    lines = [[*header, "kiln ms", "kiln runs", "kiln / peer"]]
    for row in rows:
        ours = ["-", "-", "-"]
        if row["ratio"] is not None:
            runs = "+".join(map(str, row["kiln_runs"]))
            ours = [f"{row['kiln_ms']:.2f}", runs, f"{row['ratio']:.2f}"]
        place = [row["what"], str(row["batch"]), str(row["length"]), row["peer"], row["mode"]]
        lines.append([*place, f"{row['ms']:.2f}", f"{row['tokens_per_s']:.1f}", str(row["runs"]), *ours])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = {0, 3, 4}

    def cell(i: int, text: str) -> str:
        return text.ljust(widths[i]) if i in left else text.rjust(widths[i])

    return "\n".join("  ".join(cell(i, text) for i, text in enumerate(line)).rstrip() for line in lines)
