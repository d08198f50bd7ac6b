"""The report of a study: one page that an archaeologist can read, that prints, and that needs no network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from unmask import report
from unmask.debitage.findings import Finding, listed, many, plural
from unmask.debitage.mixed import discovery
from unmask.debitage.study import Frame, Study
from unmask.report import section, table, text

LEVEL = 0.05
"""Of significance, and of false discovery."""
PRINT = """<style>@media print { body { max-width: none; font-size: 10pt; padding: 0; } section { break-inside: auto; }
  figure, tr, .banner { break-inside: avoid; } h2 { break-after: avoid; } details { display: block; }
  details > summary { display: none; } details::details-content { content-visibility: visible; display: block; }
  img { min-width: 0; } }
  .finding { border-left: .3rem solid var(--line); padding: .1rem 0 .1rem .9rem; margin: .8rem 0; }
  .finding.bad { border-color: var(--bad); } .finding.warn { border-color: #d08700; } .finding.good { border-color: var(--good); }
  .wide { overflow-x: auto; } .wide td, .wide th { white-space: nowrap; } .wide td.words { white-space: normal; }</style>"""


@dataclass
class Found:
    """What a study found, table by table."""

    study: Study
    findings: list[Finding]
    tests: Frame
    """A row a `statistics.Test`, with "on": what was compared."""
    beside: Frame
    """Honest and naive p of the same question."""
    effects: Frame
    """As `mixed.mixed` gives it."""
    judged: Frame
    """A row a protocol and model."""
    votes: Frame
    """A row a protocol, model and assemblage."""
    predictions: Frame
    power: Frame
    power_sentence: str
    crossing: Frame
    """How often the nearest particles of other units share the label."""
    notes: list[str]
    pictures: dict[str, bytes]


# The verdict


def verdict(found: Found) -> tuple[str, str]:
    """A word and a sentence: whether these data can answer, and what they say."""
    q, barred = found.study.question, [f for f in found.findings if f.severity == "cannot answer"]
    if barred:
        return "these data cannot answer", (
            f"Whether {plural(q.label)} differ cannot be told from these data: "
            f"{listed([first(f.title) for f in barred], 4)}. "
            "What is found below may be real differences between these assemblages; what they are due to, nobody can say."
        )
    hits, looked = differences(found)
    wholes, parts = dealt_among(found)
    dealt = f"each on whole {plural(q.unit)}" if wholes else f"labels dealt out within {plural(q.unit)}"
    dealt += " or within those of several labels" if wholes and parts else ""
    if hits:
        return "a difference", (
            f"{plural(q.label).capitalize()} differ by {listed(hits, 4)}: {len(hits)} of {looked} tests at a false discovery "
            f"rate of {LEVEL:.0%}, {dealt}. {found.power_sentence}"
        )
    least = found.tests["smallest_p"].min() if len(found.tests) else math.nan
    limit = f" With these {plural(q.unit)} no p below {least:.2g} was possible." if least > LEVEL else ""
    return "no difference found", (
        f"None of {looked} tests, {dealt}, finds that {plural(q.label)} differ at a false discovery rate of {LEVEL:.0%}."
        f"{limit} That is no proof that they do not: {found.power_sentence[:1].lower()}{found.power_sentence[1:]}"
    )


def dealt_among(found: Found) -> tuple[bool, bool]:
    """Whether labels were dealt out among units, and among the assemblages or particles of each."""
    q, names = found.study.question, list(found.tests["name"]) if len(found.tests) else []
    wholes, *parts = (f"{q.label} among {plural(whom)}" for whom in (q.unit, "assemblage", "particle"))
    inside = any(name.endswith(tuple(parts)) for name in names)
    return not inside or any(name.endswith(wholes) for name in names), inside


def first(title: str) -> str:
    """A title as it stands inside a sentence."""
    return title[:1].lower() + title[1:] if title[1:2].islower() else title


def differences(found: Found) -> tuple[list[str], int]:
    """The tests of the question with a false discovery rate below the level (Benjamini & Hochberg 1995), and how many were
    made: of the label or the covariate among units or within them, of measures, of being recognised by models."""
    q = found.study.question
    whom = (q.unit, "assemblage", "particle")
    among = tuple(f", {name} among {plural(unit)}" for name in (q.label, q.covariate) for unit in whom if name)
    looked = [
        (f"{row['name']} on {row['on']} (p = {row['p']:.3g})", row["p"])
        for row in found.tests.to_dict("records")
        if str(row["name"]).endswith(among)
    ]
    if len(found.effects):
        own = found.effects[(found.effects["stands"] == found.effects["measure"]) & (found.effects["q"] < LEVEL)]
        words = f"{many(len(own), 'measure')} of mixed models (q < {LEVEL}: {listed(list(own['measure']), 3)})"
        looked.append((words, found.effects["q"].min()))
    looked += [
        (f"{row['model']} (p = {row['p']:.3g})", row["p"])
        for row in found.judged.to_dict("records")
        if row.get("honest") and row["protocol"].startswith(f"{q.label},") and row.get("p") is not None
    ]
    looked = [(words, p) for words, p in looked if finite(p)]
    rates = discovery(np.array([p for _, p in looked]))
    return [words for (words, _), rate in zip(looked, rates, strict=True) if rate < LEVEL], len(looked)


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


# The page


def page(found: Found, stated: dict[str, Any], result: dict[str, Any], tables: Sequence[str]) -> str:
    """The HTML. stated: what settings.yaml says. tables: names of the CSV files."""
    study, q = found.study, found.study.question
    kept = found.pictures

    def figure(name: str, words: str, width: str = "100%") -> str:
        return report.picture(kept[name], words, width) + f'<p class="soft">{text(words)}</p>' if name in kept else ""

    colour = {"these data cannot answer": "bad", "a difference": "good"}.get(result["verdict"], "warn")
    sign = {"bad": "✗", "good": "✓", "warn": "!"}[colour]
    counts = ((result["particles"], "particle"), (result["assemblages"], "assemblage"), (result["units"], q.unit))
    about = [*(many(n, noun) for n, noun in counts), str(stated["date"])[:16].replace("T", " ")]
    parts = [
        PRINT,
        f'<header><h1>{text(study.title)}</h1><p class="soft">{text(" · ".join(about))}</p></header>',
        f'<div class="banner {colour}"><b>{sign} {text(result["verdict"])}</b><p>{text(result["sentence"])}</p></div>',
        material(found),
        audited(found.findings),
        section(
            "As it should be tested, and as it mostly is",
            (
                f"A {q.label} belongs to a {q.unit}, not to a particle: a thousand particles of one {q.unit} are one "
                f"{q.unit}. In blue whole {plural(q.unit)} are dealt out anew"
                if dealt_among(found)[0]
                else f"Particles of one {q.unit} are alike for many reasons. In blue labels are dealt out within each {q.unit}"
            )
            + "; in vermilion particles are taken for replicates, or split at "
            f"random so that each {q.unit} stands on both sides. Where only that is small, it has found the "
            f"{q.unit}, the stone or the day.",
            figure("tests", "p of the same question, asked both ways; grey is out of reach with so few units.")
            + frame(
                found.beside,
                {"test": "test", "honest": "p, honest", "smallest": "smallest possible", "naive": "p, particles"},
            ),
        )
        if len(found.beside)
        else "",
        between(found, figure),
        recognised(found, figure),
        planning(found, figure),
        looks(found, figure),
        methods(found, stated),
        limits(found),
        section(
            "Every number",
            "Each table and figure of this page, and what is behind them, lies beside it.",
            "<p>" + ", ".join(f"<code>tables/{text(name)}</code>" for name in tables) + "</p>",
        ),
    ]
    return report.document(study.title, parts)


def frame(data: Frame, heads: dict[str, str], most: int = 60, words: Sequence[str] = ()) -> str:
    """Columns of a table under these headings. words: columns that hold sentences, and may be broken."""
    shown = [name for name in heads if name in data]
    rows = [[cell(row[name]) for name in shown] for row in data.head(most).to_dict("records")]
    more = f'<p class="soft">and {len(data) - most:,} more rows, in tables/</p>' if len(data) > most else ""
    return f'<div class="{"" if words else "wide"}">{table([heads[name] for name in shown], rows)}</div>{more}'


def cell(value: Any) -> str:
    """A value as it stands in a table."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)) or value is pd.NA:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def material(found: Found) -> str:
    """Which assemblages there are, of whom."""
    q, particles = found.study.question, found.study.particles
    columns = [q.unit, q.label, q.covariate, q.strata, *q.nuisances]
    names = list(dict.fromkeys(name for name in columns if name is not None and name != "assemblage"))
    kind: Any = particles.groupby("assemblage", sort=False)
    shown = kind[names].agg(lambda values: listed(sorted(map(str, values.dropna().unique())), 3)).reset_index()
    shown["particles"] = kind.size().to_numpy()
    heads = {name: name.replace("_", " ") for name in ("assemblage", *names, "particles")}
    notes = "".join(f"<li>{text(note)}</li>" for note in found.notes)
    body = frame(shown, heads, most=30)
    size = report.picture(found.pictures["sizes"], "Sizes by unit.") if "sizes" in found.pictures else ""
    return section(
        "What was looked at",
        "",
        body
        + (
            f"<details><summary>{many(len(found.notes), 'remark')} on the data</summary><ul>{notes}</ul></details>"
            if notes
            else ""
        )
        + size,
    )


MARKS = {"cannot answer": ("bad", "✗"), "warning": ("warn", "!"), "note": ("", "·"), "fine": ("good", "✓")}


def audited(findings: Sequence[Finding]) -> str:
    """What the data cannot answer, worst first."""
    body = ""
    for finding in findings:
        colour, sign = MARKS[finding.severity]
        body += f'<div class="finding {colour}"><b>{sign} {text(finding.title)}</b>'
        body += f"<p>{text(finding.sentence)}</p>"
        if finding.table is not None and len(finding.table):
            shown = finding.table.head(20)
            plain = table(
                [str(c).replace("_", " ") for c in shown],
                [[cell(v) for v in row] for row in shown.itertuples(index=False)],
            )
            body += f'<details><summary>the figures</summary><div class="wide">{plain}</div></details>'
        body += "</div>"
    words = (
        "Looked at before any model. What is marked ✗ no model, no test and no number of particles can mend; "
        "only other assemblages can."
    )
    return section("What these data can answer", words, body)


def between(found: Found, figure: Any) -> str:
    """Tests between assemblages, and measures."""
    q = found.study.question
    if not len(found.tests) and not len(found.effects):
        return ""
    heads = {
        "on": "on",
        "name": "test",
        "statistic": "pseudo-F",
        "r2": "R²",
        "p": "p",
        "smallest_p": "smallest possible",
        "units": "dealt out",
    }
    body = frame(found.tests, heads) if len(found.tests) else ""
    body += figure("tree", "Which are alike: mean measures, joined by average linkage.")
    body += figure(
        "map-measures",
        "Particles by their measures, coloured by label; the large dots are the means of units, where these are few.",
    )
    if len(found.effects):
        of = found.effects["contrast"].iloc[0] if "contrast" in found.effects else q.label
        body += (
            f"<h3>Measure by measure</h3><p>Mixed models with {text(plural(q.unit))} and their assemblages as "
            "random effects; what is estimated: "
        )
        body += (
            f"{text(str(of))}. t has the degrees of freedom of {text(plural(q.unit))}, not of particles. q is the "
            "false discovery rate over all measures.</p>"
        )
        body += figure("effects", "Estimates in standard deviations, with 95% intervals; filled where q < 0.05.")
        heads = {"measure": "measure", "effect": "effect, s.d.", "estimate": "estimate", "low": "from", "high": "to"}
        heads |= {"p": "p", "q": "q", "share_unit": f"variance: {q.unit}", "share_assemblage": "assemblage"}
        heads |= {"share_particle": "particle", "stands": "told by"}
        shown = found.effects.sort_values("p") if "p" in found.effects else found.effects
        body += f"<details><summary>all {len(shown)} measures</summary>{frame(shown, heads)}</details>"
    return section("Whether assemblages differ", "", body)


def recognised(found: Found, figure: Any) -> str:
    """What models got right, by every protocol."""
    if not len(found.judged):
        return ""
    q = found.study.question
    body = figure(
        "classified-skill",
        f"Accuracy of recognising the {q.label}, with 95% intervals by {q.unit}; dashed: always naming the commonest.",
    )
    body += figure("classified-unit", f"Accuracy of recognising the {q.unit} in an assemblage not seen before.")
    shown = found.judged.copy()
    if "accuracy" in shown:
        for name in ("accuracy", "balanced", "vote_accuracy"):
            start = {"accuracy": "", "balanced": "balanced_", "vote_accuracy": "vote_"}[name]
            low, high = f"{start}low", f"{start}high"
            shown[f"{name}_told"] = [
                f"{a:.3f} [{b:.3f}, {c:.3f}]" if finite(a) else "–"
                for a, b, c in zip(
                    shown[name],
                    shown.get(low, [math.nan] * len(shown)),
                    shown.get(high, [math.nan] * len(shown)),
                    strict=True,
                )
            ]
        for protocol, rows in shown.groupby("protocol", sort=False):
            known = rows[rows["accuracy"].notna()]
            body += f"<h3>{text(protocol)}</h3>"
            if not len(known):
                body += "".join(f"<p>{text(sentence)}</p>" for sentence in rows["sentence"])
                continue
            leaky = "" if rows["honest"].iloc[0] else f" Leaky: each {q.unit} is on both sides."
            body += (
                f'<p class="soft">{text(known["how"].iloc[0])}; {many(int(known["n"].iloc[0]), "particle")} '
                f"tested; the commonest is {known['majority'].iloc[0]:.1%} of them.{text(leaky)}</p>"
            )
            heads = {"model": "model", "accuracy_told": "accuracy", "balanced_told": "balanced", "macro_f1": "macro F1",
                     "vote_accuracy_told": "assemblages by vote"}  # fmt: skip
            heads |= {"p": "p", "smallest_p": "smallest possible"} if known["p"].notna().any() else {}
            body += frame(known, heads)
            if "unlearnt" in known and (known["unlearnt"] > 0).any():  # NaN of what is no network
                body += f"<p>{text(unlearnt(known[known['unlearnt'] > 0]))}</p>"
    return section(
        f"Whether the {q.label} can be recognised",
        f"Models of measures, of pictures, and of both, each judged on {plural(q.unit)} it never saw; intervals "
        f"resample whole {plural(q.unit)}. MAE learnt from all pictures, but from no label. Where there are few "
        f"{plural(q.unit)}, each part leaves out as many of every {q.label}: who leaves out one alone learns its label from "
        "fewer than the others, and names it too seldom or too often for that. p says how often labels that are dealt out "
        "anew are recognised as well.",
        body,
    )


def unlearnt(rows: Frame) -> str:
    """Networks that learnt nothing, in words. rows: of the judged."""
    told = [f"{row['model']} in {row['unlearnt']:.0f} of {row['parts']:.0f} parts" for row in rows.to_dict("records")]
    return (
        f"Learnt nothing: {listed(told)}. Where the loss stays at what guessing gets, the figure says little of the pictures. "
        "More particles would help, or more passes (--epochs)."
    )


def planning(found: Found, figure: Any) -> str:
    if not len(found.power):
        return ""
    words = (
        f"{found.power_sentence} Simulated from the variances between {plural(found.study.question.unit)}, "
        f"assemblages and particles found here: between few {plural(found.study.question.unit)} these are little "
        "known, and mostly too small."
    )
    return section(
        "How many would be needed",
        words,
        figure("power", "Power of a test of two labels at 5%, by number of units and particles."),
    )


def looks(found: Found, figure: Any) -> str:
    """Sheets of particles, attention, occlusion, neighbours."""
    q = found.study.question
    body = figure(
        "particles-skill", "Judged right, and wrong, most surely, of those that the ViT after MAE was not trained on."
    )
    for name, words in (("vit-after-mae", "The ViT after MAE"), ("resnet", "The ResNet")):
        body += figure(
            f"looked-skill-{name}",
            f"{words}, on particles it had not seen, from the least to the most sure of the truth: red is what it needs.",
        )
    body += figure("map-features", "Particles by what MAE's encoder makes of their pictures.")
    body += figure("neighbours", f"Most like it among other {plural(q.unit)}, by MAE's encoder.")
    if len(found.crossing):
        heads = {
            "unit": q.unit,
            "label": q.label,
            "same_label": f"nearest five of other {plural(q.unit)} that share the {q.label}",
            "chance": "by chance",
        }
        body += frame(found.crossing, heads, most=30)
    return section("What it was judged by", "", body) if body else ""


def methods(found: Found, stated: dict[str, Any]) -> str:
    """A paragraph as a paper has it."""
    fixed, versions, q = stated["fixed"], stated["versions"], found.study.question
    told = ", ".join(f"{name} {each}" for name, each in versions.items())
    passes = f"{fixed['epochs']:g} passes" if fixed["epochs"] else "8 passes, or 4,000 particles where that is more,"
    pixels = "" if fixed["quick"] else (
        f" Networks saw particles cut out, scaled to {fixed['pixels']} x {fixed['pixels']} pixels, so that size "
        f"was left to the measures: a {fixed['resnet']} and a "
        f"{fixed['vit']} (a vision transformer) from scratch, and the transformer after masked autoencoding (He "
        "et al. 2021) on all pictures without labels for "
        f"{fixed['pretrain_epochs']:g} passes, each trained for {passes} in every fold; nothing was chosen by the test."
    )  # fmt: skip
    wholes, parts = dealt_among(found)
    permuted = [f"whole {plural(q.unit)}" + (f" within {plural(q.strata)}" if q.strata else "")] if wholes else []
    permuted += [f"labels within {plural(q.unit)} of several"] if parts else []
    body = (
        f"{many(len(found.study.particles), 'particle')} of {many(len(found.study.units), q.unit)} were compared "
        f"in {many(len(found.study.measures), 'measure')}; lengths, "
        "areas and volumes by their logarithm, all scaled by median and interquartile range; of measures with "
        "rank correlations above 0.95 one stands for all in tests over all measures. "
        f"Differences between {plural(q.label)} were tested by PERMANOVA (Anderson 2001) and, for spread, "
        f"PERMDISP (Anderson 2006), permuting {' and '.join(permuted)}"
        + f" ({fixed['permutations']} permutations, or all where there are fewer), and measure by measure by mixed "
        f"models (REML) with random {plural(q.unit)} and assemblages, t on the degrees "
        f"of freedom of {plural(q.unit)}, false discovery controlled after Benjamini & Hochberg (1995). Random "
        "forests (Breiman 2001; 500 trees) and penalised logistic regressions were "
        f"tested with whole {plural(q.unit)} left out, all scaling inside folds, intervals by bootstrap over "
        f"{plural(q.unit)}." + pixels + f" Seed {fixed['seed']}. {told}."
    )
    where = (
        f"Data: {text(str(found.study.path))}; the tables beside this page hold every measure and prediction. "
        "Nothing left this machine."
    )
    return section("Methods", "", f"<p>{text(body)}</p><p>{where}</p>")


def limits(found: Found) -> str:
    """What the reader must not conclude."""
    q = found.study.question
    lines = [
        (
            f"Of {plural(q.unit)} other than these {len(found.study.units)}, only tests on {plural(q.unit)} left out "
            "say anything, and as much as so few can."
        ),
        "A p above 5% is no proof of likeness; the section on power says what could have been found.",
        (
            "The level is not corrected over the several tests of this page; measures are, among themselves. MAE saw "
            f"the pictures of {plural(q.unit)} that it was later tested on, without labels."
        ),
        "Occlusion and attention show what a network used, not why the stone broke so.",
    ]
    return section("Limits", "", "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>")
