"""``mixlogit-align simulate``, ``fit`` and ``study``: the words of a command line, read and carried out."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import shlex
import sys
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution

from mixlogit_align import __version__
from mixlogit_align.distributions import ImportanceSampling, Integration, MonteCarlo, Quadrature, QuasiMonteCarlo
from mixlogit_align.econometrics.columns import require_columns
from mixlogit_align.econometrics.data import ChoiceData
from mixlogit_align.econometrics.families import FAMILIES, PARAMETERS, Random
from mixlogit_align.econometrics.model import MixedLogitModel
from mixlogit_align.econometrics.recovery_statistics import FEWEST
from mixlogit_align.econometrics.simulate import simulate_choices
from mixlogit_align.econometrics.specification import TAU
from mixlogit_align.econometrics.study import recovery_study
from mixlogit_align.errors import InvalidInputError, explain

if TYPE_CHECKING:
    import pandas as pd

_TERM = re.compile(
    r"""\s*(?P<family>-?\w+)\s*
    (?:\((?P<numbers>[^()]*)\)\s*)?
    (?:\bin\s+(?P<low>\S+?)\.\.(?P<high>\S+)\s*)?
    (?:\bby\s+(?P<by>\S.*))?""",
    re.VERBOSE,
)
_TERM_EXPECTED = "NAME=FAMILY, NAME=FAMILY(A, B), either with 'in LOW..HIGH' or 'by COVARIATE, ...' behind it"
_RULES = ("quadrature:64", "importance:64", "halton:500", "sobol:1024", "mlhs:500", "pseudo:500")


def simulate(options: Namespace) -> None:
    """Write a table of choices and the truth behind it.

    Parameters
    ----------
    options : argparse.Namespace
        fixed, random, correlation, attribute : lists of words; wtp_space; scale_heterogeneity : float or None;
        individuals, situations, alternatives, seed; out : Path.

    Raises
    ------
    InvalidInputError
        If a word cannot be read, or the truth does not fit together.
    """
    params, truth_model = _truth(options)
    table_type = _table_type(options.out)
    simulated = simulate_choices(
        params,
        **truth_model,
        **_design(options),
        seed=options.seed,
    )

    truth, frame = options.out.with_suffix(".truth.json"), simulated.frame
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if table_type == "parquet":
        frame.to_parquet(options.out, index=False)
    else:
        frame.to_csv(options.out, index=False)
    fixed, random, blocks = truth_model["fixed"], truth_model["random"], truth_model["correlated"]
    model = truth_model | {"random": {name: str(family) for name, family in random.items()}}
    record = {
        "params": simulated.params,
        "model": model,
        "individuals": options.individuals,
        "situations": options.situations,
        "alternatives": options.alternatives,
        "seed": options.seed,
        "version": __version__,
    }
    truth.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(simulated.data)
    print(f"choices: {options.out}\ntruth: {truth}")
    fit_words = ["mixlogit-align", "fit", str(options.out)]
    fit_words += ["--individual", "individual"] * simulated.data.is_panel
    fit_words += ["--fixed", *fixed] if fixed else []
    fit_words += ["--random", *(f"{name}={word}" for name, word in model["random"].items())] if random else []
    fit_words += ["--correlated", *(",".join(block) for block in blocks)] if blocks else []
    fit_words += ["--wtp-space", options.wtp_space] if options.wtp_space else []
    fit_words += ["--scale-heterogeneity"] * model["scale_heterogeneity"]
    print(f"to estimate it: {shlex.join(fit_words)}")


def fit(options: Namespace) -> bool:
    """Estimate a model from a table, print its summary and write what was asked for.

    Parameters
    ----------
    options : argparse.Namespace
        table : Path; formula or fixed; random, correlated : lists of words; wtp_space, scale_heterogeneity; choice,
        alternative, situation, individual, availability, weights, logratios; cov_type, integration, hold, bounds,
        starts, redraws, replications, seed, device; out, html, latex : Path or None.

    Returns
    -------
    bool
        Whether the fit converged.

    Raises
    ------
    InvalidInputError
        If a word, the table or the specification breaks a rule.
    """
    for path in (options.out, options.html, options.latex):
        # before the fit, which may take long
        if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            _refuse("output", f"{str(path)!r}", "a file in a folder that exists and can be written to", "another path")
    integration = read_rule(options.integration)
    device = _device(options.device)
    model = _model(options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = model.fit(
            integration=integration,
            cov_type=options.cov_type,
            hold={name: _number(f"--hold {name}", value) for name, value in _pairs("--hold", options.hold, "NUMBER")},
            bounds={name: _bounds(name, text) for name, text in _pairs("--bounds", options.bounds, "LOW..HIGH")},
            num_starts=options.starts,
            num_redraws=options.redraws,
            num_replications=options.replications,
            seed=options.seed,
            device=device,
            progress=sys.stdout.isatty(),
        )
    for warning in caught:
        print(f"mixlogit-align: warning: {warning.message}", file=sys.stderr)
    if not model.data.is_panel:
        print("every situation has its own individual, since --individual was not given")
    print(result.summary)
    if options.out is not None:
        result.save(options.out)
        print(f"result: {options.out}")
    if options.html is not None:
        options.html.write_text(_page("mixed logit", result.summary.as_html()), encoding="utf-8")
        print(f"page: {options.html}")
    if options.latex is not None:
        options.latex.write_text(result.summary.as_latex() + "\n", encoding="utf-8")
        print(f"LaTeX: {options.latex}")
    return result.converged


def study(options: Namespace) -> bool:
    """Run or continue a recovery study, print its summary and write tables and a figure into its folder.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`simulate`; replications, jobs, level; integration, cov_type; out : Path, a folder.

    Returns
    -------
    bool
        Whether enough replications converged for statistics.

    Raises
    ------
    InvalidInputError
        If a word cannot be read, the truth does not fit together, or the folder holds another study.
    """
    params, model = _truth(options)
    found = recovery_study(
        params,
        **model,
        **_design(options),
        num_replications=options.replications,
        fit={"integration": read_rule(options.integration), "cov_type": options.cov_type},
        level=options.level,
        seed=options.seed,
        out=options.out,
        n_jobs=options.jobs,
        progress=sys.stdout.isatty(),
    )
    print(found.summary)
    found.to_frame().to_csv(options.out / "statistics.csv", index_label="quantity")
    found.estimates().to_csv(options.out / "estimates.csv", index=False)
    figure = options.out / "recovery.png"
    found.plot().savefig(figure, dpi=150)
    image = f'<img alt="bias, coverage and standard errors" style="max-width:100%" src="{_inline(figure)}">'
    page = _page("recovery study", f"{found.summary.as_html()}\n<p>{image}</p>")
    (options.out / "summary.html").write_text(page, encoding="utf-8")
    print(f"study: {options.out}, with summary.html, recovery.png, statistics.csv and estimates.csv")
    return len(found.converged) >= FEWEST


def _truth(options: Namespace) -> tuple[dict[str, float], dict[str, Any]]:
    """Parameters, and the model that has them as `simulate_choices` takes it."""
    fixed = {name: _number(f"--fixed {name}", value) for name, value in _pairs("--fixed", options.fixed, "NUMBER")}
    random, params = {}, dict(fixed)
    for name, text in _pairs("--random", options.random):
        family, slopes = _random(name, text)
        if family.start is None or None in slopes.values():
            _refuse(f"--random {name}", text, "every parameter of the truth",
                    f"'{name}=normal(-1, 0.5)', or '{name}=normal(-1, 0.5) by income=0.3'")  # fmt: skip
        random[name] = replace(family, start=None)  # an estimation is not to begin at the truth
        params |= dict(zip((f"{name}.{part}" for part in family.parameters), family.start, strict=True))
        params |= {f"{name}.loc:{covariate}": slope for covariate, slope in slopes.items() if slope is not None}
    blocks = _correlate(options.correlation, random, params)
    if options.scale_heterogeneity is not None:
        params[TAU] = options.scale_heterogeneity
    return params, {
        "fixed": list(fixed),
        "random": random,
        "correlated": blocks,
        "wtp_space": options.wtp_space,
        "scale_heterogeneity": options.scale_heterogeneity is not None,
    }


def _design(options: Namespace) -> dict[str, Any]:
    """How many choose what, as `simulate_choices` takes it."""
    return {
        "num_individuals": options.individuals,
        "num_situations": options.situations,
        "num_alternatives": options.alternatives,
        "attributes": {name: _attribute(name, text) for name, text in _pairs("--attribute", options.attribute)},
    }


def _page(title: str, body: str) -> str:
    return f'<!doctype html>\n<meta charset="utf-8">\n<title>{title}</title>\n{body}\n'


def _inline(path: Path) -> str:
    """A PNG file as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _model(options: Namespace) -> MixedLogitModel:
    random: dict[str, Random] = {}
    for name, text in _pairs("--random", options.random, "FAMILY"):
        random[name], slopes = _random(name, text)
        if set(slopes.values()) - {None}:
            _refuse(
                f"--random {name}", text, "names of covariates alone, since their slopes are estimated", "by income"
            )
    correlated = False if options.correlated is None else _blocks(options.correlated)
    cluster = re.fullmatch(r"clustered\((.+)\)", options.cov_type)
    clusters = [cluster[1]] if cluster else []
    frame = read_table(options.table)
    alternative, situation = options.alternative or "alternative", options.situation or "situation"
    ids = {"availability": options.availability, "weights": options.weights, "clusters": clusters}
    kind = {"wtp_space": options.wtp_space, "scale_heterogeneity": options.scale_heterogeneity}
    if options.formula is not None:
        if options.fixed or options.logratios or options.choice is not None:
            _refuse("--formula", "also --fixed, --choice or --logratios", "one of them",
                    "the formula alone, which names the choice and every attribute")  # fmt: skip
        return MixedLogitModel.from_formula(
            options.formula,
            frame,
            alternative=alternative,
            situation=situation,
            individual=options.individual,
            random=random,
            correlated=correlated,
            **kind,
            **ids,
        )
    if not options.fixed and not random:
        _refuse("attributes", "none", "--fixed, --random or --formula", "--random NAME=lognormal, or --fixed NAME")
    if options.logratios:
        if any(
            named is not None
            for named in (options.choice, options.alternative, options.situation, options.availability)
        ):
            _refuse("--logratios", "also --choice, --alternative, --situation or --availability",
                    "rows that are judged pairs", "leaving these out")  # fmt: skip
        data = ChoiceData.from_logratios(
            frame, individual=options.individual, weights=options.weights, clusters=clusters
        )
    else:
        covariates = [c for spec in random.values() for c in spec.mean_covariates]
        variables = list(dict.fromkeys([*options.fixed, *random, *covariates]))
        named = {"--fixed": options.fixed, "--random": list(random), "--random ... by": covariates}
        require_columns(frame, named)
        data = ChoiceData.from_long(
            frame,
            choice=options.choice or "choice",
            alternative=alternative,
            situation=situation,
            individual=options.individual,
            variables=variables,
            **ids,
        )
    return MixedLogitModel(data, options.fixed, random, correlated, **kind)


def read_rule(text: str | None) -> Integration | None:
    """An integration rule from ``KIND:DRAWS`` or ``KIND:DRAWS:SEED``.

    Parameters
    ----------
    text : str or None
        ``"halton:500"``; the seed ``plain`` leaves a Halton sequence unscrambled.

    Raises
    ------
    InvalidInputError
        If it cannot be read.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\w+)(?::(\d+)(?::(\d+|plain))?)?", text)
    kind, count, seed = found.groups() if found else ("", None, None)
    if kind == "quadrature" and seed is None:
        return Quadrature(int(count) if count else None)
    seeded: dict[str, Any] = {} if seed is None else {"seed": None if seed == "plain" else int(seed)}
    if count is not None:
        if kind == "importance":
            return ImportanceSampling(int(count), **seeded)
        if kind in ("halton", "sobol", "mlhs"):
            return QuasiMonteCarlo(kind, int(count), **seeded)  # type: ignore[arg-type]
        if kind == "pseudo" and seed != "plain":
            return MonteCarlo(int(count), **seeded)
    _refuse("--integration", repr(text), "KIND:DRAWS or KIND:DRAWS:SEED, as " + ", ".join(_RULES), "sobol:1024")


def _pairs(option: str, words: Sequence[str], what: str = "FAMILY(A, B)") -> list[tuple[str, str]]:
    """``NAME=TEXT``, each name once."""
    found: list[tuple[str, str]] = []
    for word in words:
        name, equals, text = (part.strip() for part in word.partition("="))
        if not equals or not name or not text:
            _refuse(option, repr(word), f"NAME={what}", f"{option} {name or 'NAME'}=..., quoted if it has brackets")
        if name in dict(found):
            _refuse(option, f"{name!r} twice", "each name once", "one of them")
        found.append((name, text))
    return found


def _random(name: str, text: str) -> tuple[Random, dict[str, float | None]]:
    """A random coefficient, with its numbers as start, and the slopes of the covariates of its mean."""
    term = _TERM.fullmatch(text)
    if term is None:
        _refuse(f"--random {name}", repr(text), _TERM_EXPECTED, f"'{name}=normal', '{name}=-lognormal(0, 0.5)'")
    slopes: dict[str, float | None] = {}
    for word in (term["by"] or "").split(","):
        covariate, equals, slope = (part.strip() for part in word.partition("="))
        if covariate:
            slopes[covariate] = _number(f"--random {name}, slope of {covariate}", slope) if equals else None
    family = term["family"].removeprefix("-")
    start = None
    if term["numbers"] is not None:
        start = tuple(_number(f"--random {name}", part) for part in term["numbers"].split(","))
        if len(start) != 2 and family in PARAMETERS:
            _refuse(f"--random {name}", repr(text), f"two numbers, {' and '.join(PARAMETERS[family])}",
                    f"'{name}={family}(1, 0.5)'")  # fmt: skip
    bounds = None
    if term["low"] is not None:
        bounds = tuple(_number(f"--random {name}, bounds", part) for part in (term["low"], term["high"]))
    sign = -1 if term["family"].startswith("-") else 1
    try:
        return Random(family, sign, start, tuple(slopes), bounds), slopes  # type: ignore[arg-type]
    except InvalidInputError as error:
        raise InvalidInputError(f"--random {name}, {error}") from error


def _bounds(name: str, text: str) -> tuple[float, float]:
    low, dots, high = text.partition("..")
    if not dots:
        _refuse(f"--bounds {name}", repr(text), "LOW..HIGH, of which one may be left out", f"{name}=-5..0")
    what = f"--bounds {name}"
    return _number(what, low) if low else -math.inf, _number(what, high) if high else math.inf


def _blocks(words: Sequence[str]) -> bool | list[list[str]]:
    return [[name.strip() for name in word.split(",")] for word in words] or True


def _correlate(words: Sequence[str], random: Mapping[str, Random], params: dict[str, float]) -> list[list[str]]:
    """Blocks of correlated coefficients; their scales in ``params`` become Cholesky factors."""
    given: dict[frozenset[str], float] = {}
    for pair, text in _pairs("--correlation", words, "NUMBER"):
        names = [name.strip() for name in pair.split(",")]
        value = _number(f"--correlation {pair}", text)
        normal = all(n in random and random[n].family in ("normal", "lognormal", "censored_normal", "johnson_sb")
                     for n in names)  # fmt: skip
        if len(set(names)) != 2 or not normal or not -1.0 < value < 1.0:
            _refuse("--correlation", f"{pair}={text}",
                    "NAME,NAME=R of two random coefficients made of normal variables, -1 < R < 1",
                    "time,cost=0.5, where both are normal or lognormal")  # fmt: skip
        given[frozenset(names)] = value
    groups: list[set[str]] = []
    for two in given:
        joined = [group for group in groups if group & two]
        groups = [group for group in groups if not group & two] + [set(two).union(*joined)]
    blocks = [[name for name in random if name in group] for group in groups]
    for block in blocks:
        scale = torch.tensor([params.pop(f"{name}.scale") for name in block], dtype=torch.float64)
        rows = [[1.0 if a == b else given.get(frozenset((a, b)), 0.0) for b in block] for a in block]
        correlation = torch.tensor(rows, dtype=torch.float64)
        factor, failed = torch.linalg.cholesky_ex(correlation)
        if failed:
            _refuse("--correlation", f"a matrix of {block} that is not positive definite",
                    "correlations that can be together", "smaller ones")  # fmt: skip
        factor = scale[:, None] * factor
        params |= {
            f"chol.{row}.{col}": float(factor[i, k])
            for i, row in enumerate(block)
            for k, col in enumerate(block[: i + 1])
        }
    return blocks


def _attribute(name: str, text: str) -> TorchDistribution:
    """A distribution, ``normal(1, 2)``, or the value for each alternative, ``0,1,0``."""
    term = re.fullmatch(r"(\w+)\s*\(([^(),]*),([^(),]*)\)", text)
    if term is not None and term[1] in FAMILIES:
        family = FAMILIES[term[1]]
        numbers = [_number(f"--attribute {name}", part) for part in (term[2], term[3])]
        if all(number > 0.0 for key, number in zip(family.names, numbers, strict=True) if key != "loc"):
            return family.mixing(family.theta(torch.tensor(numbers, dtype=torch.float64)))
    if re.fullmatch(r"[-+.,\deE\s]+", text):
        numbers = [_number(f"--attribute {name}", part) for part in text.split(",")]
        return dist.Delta(torch.tensor(numbers, dtype=torch.float64))
    _refuse(f"--attribute {name}", repr(text),
            f"FAMILY(A, B), a family of {', '.join(FAMILIES)} with positive scale, or a value for each alternative",
            f"'{name}=normal(0, 1)', or {name}=0,1,0 for a constant of the second of three")  # fmt: skip


def _number(what: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        _refuse(what, repr(text.strip()), "a number", "0.5")


def _device(name: str | None) -> torch.device | None:
    if name is None:
        return None
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # an unknown name; torch built without CUDA; no driver
        _refuse("--device", f"{name!r} ({str(error).splitlines()[0]})", "a device that torch finds here", "cpu")


def _table_type(path: Path) -> str:
    kinds = {".parquet": "parquet", ".csv": "csv", ".gz": "csv"}
    if path.suffix not in kinds or (path.suffix == ".gz" and Path(path.stem).suffix != ".csv"):
        _refuse("table", f"{str(path)!r}", "a file .csv, .csv.gz or .parquet", "another name")
    return kinds[path.suffix]


def read_table(path: Path) -> pd.DataFrame:
    """A table from CSV or Parquet.

    Parameters
    ----------
    path : Path
        .csv, .csv.gz or .parquet.

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    InvalidInputError
        If there is no such file, or it cannot be read.
    """
    import pandas as pd

    # a column of a CSV file has one type: ids must not be numbers in one part of it and texts in another
    read = pd.read_parquet if _table_type(path) == "parquet" else partial(pd.read_csv, low_memory=False)
    if not path.is_file():
        _refuse("table", f"{str(path)!r}, which is not there", "a file", "its path from this folder, or a whole one")
    try:
        return read(path)
    except (OSError, ValueError) as error:  # damaged, empty, of another format or encoding
        why = str(error).splitlines()[0]
        _refuse("table", f"{str(path)!r}, which cannot be read ({why})", "CSV in UTF-8, or Parquet", "writing it anew")


def _refuse(what: str, got: object, expected: str, hint: str) -> NoReturn:
    raise InvalidInputError(explain(what, got=got, expected=expected, hint=hint))
