"""Settings of the data sets, one section a reader, told apart by ``source``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixlogit_align.alignment.checks import counts, not_negative, positive, require
from mixlogit_align.errors import InvalidInputError, explain

# --- simulated -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SimulatedData:
    """Simulated annotators who choose between responses of known utility.

    Parameters
    ----------
    num_train, num_eval : int
        Number of comparisons in each split. Both splits share their twenty prompts.
    num_annotators : int
        Annotators; each has one strength and judges in both splits.
    strength_family : {"lognormal", "gamma"}
        Family of the annotators' strength; at ``strength_cv`` 0 both are a point.
    strength_mean, strength_cv : float
        Mean of the strength, and its standard deviation over its mean.
    utility_scale : float
        Standard deviation of the utility of one response, in the unit that makes the strength
        comparable with a preference loss's: nats of log-ratio.
    seed : int
        Fixes prompts, responses, annotators and choices. Prompts and responses do not depend on the
        strength's distribution, so that two runs that differ in it share everything but the choices.
    """

    source: Literal["simulated"] = "simulated"
    num_train: int = 8192
    num_eval: int = 1024
    num_annotators: int = 256
    strength_family: Literal["lognormal", "gamma"] = "lognormal"
    strength_mean: float = 0.1
    strength_cv: float = 1.0
    utility_scale: float = 20.0
    seed: int = 0

    def __post_init__(self) -> None:
        counts(num_train=self.num_train, num_eval=self.num_eval, num_annotators=self.num_annotators)
        positive(strength_mean=self.strength_mean, utility_scale=self.utility_scale)
        not_negative(strength_cv=self.strength_cv)


# --- what readers of real data share ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ReaderSettings:
    """What every reader of real data takes.

    Parameters
    ----------
    path : str
        A local file or folder; environment variables and ``~`` are expanded, a relative path is taken from the working
        folder. Readers that say so also take ``hub:NAME``, a name that ``datasets.load_dataset`` knows, with
        configuration, revision and split where they are needed: ``hub:NAME:CONFIGURATION@REVISION#SPLIT``.
    bad_rows : {"refuse", "leave_out"}
        What to do about rows that break a rule of `mixlogit_align.alignment.data.rows`: an error that counts them by
        rule and names the first, or go on without them, counted and named in the reader's report.
    max_train, max_eval : int or None
        Keep a random part of this many comparisons (fixed by ``seed``); None keeps all.
    seed : int
        Fixes that part, and which prompts are held out where the data have no split of their own.
    """

    source: str
    path: str
    bad_rows: Literal["refuse", "leave_out"] = "refuse"
    max_train: int | None = None
    max_eval: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(bool(self.path), "path", self.path, "a file, a folder or hub:NAME")
        counts(**{k: v for k in ("max_train", "max_eval") if (v := getattr(self, k)) is not None})


@dataclass(frozen=True, kw_only=True)
class StreamedSettings(ReaderSettings):
    """What readers take that go through their data row by row.

    Parameters
    ----------
    streaming : bool
        Read no further than ``max_train`` and ``max_eval`` ask for, so that they keep the first comparisons instead of
        a random part; nothing is downloaded ahead of a hub's rows.
    identical : {"keep", "pool"}
        What to do about candidates of equal text: leave them as they are, or take them as one, and leave out
        comparisons in which nothing is left to compare. Either way they are counted.
    """

    streaming: bool = False
    identical: Literal["keep", "pool"] = "keep"


@dataclass(frozen=True, kw_only=True)
class HeldOutSettings(StreamedSettings):
    """What readers take whose data have no split of their own.

    Parameters
    ----------
    eval_fraction : float
        Share of the prompts that is held out; see `mixlogit_align.alignment.data.splits`.
    """

    eval_fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _share(self.eval_fraction)


@dataclass(frozen=True, kw_only=True)
class ChoiceSetSettings(HeldOutSettings):
    """What readers take whose rows can have more than two candidates.

    Parameters
    ----------
    sets : {"pairs", "sets"}
        A comparison of the chosen candidate with each other one, each of the whole weight, or one comparison of all.
    """

    sets: Literal["pairs", "sets"] = "pairs"


@dataclass(frozen=True, kw_only=True)
class ConversationSettings(ChoiceSetSettings):
    """What readers of conversations take.

    Parameters
    ----------
    turns : {"first", "later", "all"}
        Which turns become comparisons. The prompt of a later turn is the conversation so far.
    prompts : {"messages", "transcript"}
        Prompts as messages, for the tokenizer's chat template, or written out as "Human: ...\\n\\nAssistant:".
    """

    turns: Literal["first", "later", "all"] = "first"
    prompts: Literal["messages", "transcript"] = "messages"


@dataclass(frozen=True, kw_only=True)
class FewPromptsSettings(ChoiceSetSettings):
    """What readers take whose few prompts are put to many people.

    Parameters
    ----------
    hold_out : {"prompts", "people"}
        Whether the evaluated split has prompts of its own, answered by everyone, or people of its own, asked the same:
        the first asks whether a policy knows what is preferred elsewhere, the second what others prefer here.
        ``eval_fraction`` is then a share of the people.
    """

    eval_fraction: float = 0.2
    hold_out: Literal["prompts", "people"] = "prompts"


# --- one section a data set ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HHData(StreamedSettings):
    """Anthropic HH pairs: ``train.jsonl`` and ``test.jsonl``, or any other kind of table, with or without ``.gz``.

    Parameters
    ----------
    path : str
        Their folder, or ``hub:Anthropic/hh-rlhf`` with ``subsets``.
    subsets : tuple of str
        Folders below ``path`` that hold the two files, e.g. ``harmless-base``; each names the group ``subset`` of
        its rows. Empty: the files lie in ``path`` itself.
    """

    source: Literal["hh"] = "hh"
    path: str = "$MIXLOGIT_DATA/hh_rlhf"
    subsets: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PrismData(ConversationSettings):
    """PRISM conversations: tables ``conversations`` and ``survey``.

    Parameters
    ----------
    path : str
        Their folder, or ``hub:HannahRoseKirk/prism-alignment``.
    preference : {"if_chosen", "score"}
        Who is preferred: the response that the conversation went on with, or the one with the higher score. By score,
        ``sets: pairs`` compares every two candidates. The scores are kept either way (`Comparison.scores`), and the
        group ``choice_and_score`` says whether the two agree.
    ties : {"if_chosen", "leave_out", "both"}
        Between candidates of equal score: the chosen one is preferred, and where none is chosen there is no comparison;
        no comparison; or a vote for each, with weights that add up to 1.
    balanced : bool
        Only conversations of the balanced subset.
    groups : tuple of str
        Columns of the survey that become groups, beside ``conversation_type``. Nested ones are named with an
        underscore, e.g. ``religion_simplified``.
    """

    source: Literal["prism"] = "prism"
    path: str = "hub:HannahRoseKirk/prism-alignment"
    preference: Literal["if_chosen", "score"] = "if_chosen"
    ties: Literal["if_chosen", "leave_out", "both"] = "if_chosen"
    balanced: bool = False
    groups: tuple[str, ...] = (
        "age",
        "gender",
        "education",
        "employment_status",
        "marital_status",
        "english_proficiency",
        "lm_familiarity",
        "religion_simplified",
        "ethnicity_simplified",
        "location_special_region",
    )


@dataclass(frozen=True, kw_only=True)
class CommunityData(ConversationSettings):
    """Community Alignment: up to four turns of four responses, one preferred.

    Parameters
    ----------
    path : str
        A table (a file, or a folder of files), or ``hub:facebook/community-alignment-dataset``.
    languages : tuple of str
        Keep conversations whose ``assigned_lang`` is one of these; empty keeps all.
    subset : {"all", "balanced", "balanced_10"}
        All conversations, or those marked ``in_balanced_subset`` or ``in_balanced_subset_10``.
    double_votes : {"keep", "first"}
        When one annotator judges the same prompt and candidates again: another observation, or left out. Counted either
        way.
    groups : tuple of str
        Columns that become groups.
    """

    source: Literal["community"] = "community"
    path: str = "hub:facebook/community-alignment-dataset"
    languages: tuple[str, ...] = ("en",)
    subset: Literal["all", "balanced", "balanced_10"] = "all"
    double_votes: Literal["keep", "first"] = "keep"
    groups: tuple[str, ...] = (
        "annotator_age",
        "annotator_gender",
        "annotator_education_level",
        "annotator_political",
        "annotator_ethnicity",
        "annotator_country",
        "is_pregenerated_first_prompt",
    )


@dataclass(frozen=True, kw_only=True)
class TableData(StreamedSettings):
    """Any table of comparisons: JSON lines, JSON, CSV (each with or without ``.gz``), Parquet, or from a hub.

    Name either ``chosen`` and ``rejected``, or ``responses`` and ``choice``; with neither, the columns "chosen" and
    "rejected" are read. A prompt is a text, taken as it is, or a list of messages with ``role`` and ``content``; a
    response is a text or one message of the assistant. In CSV, lists are written as JSON.

    Parameters
    ----------
    path : str
        A file, a folder of files, a pattern such as ``data/*.parquet``, or ``hub:NAME``.
    train_split : str or None
        Of a folder or hub, the files or the split to train on: ``train`` means ``train.jsonl``, ``train.csv.gz`` and so
        on. None is all files of a folder, and "train" at a hub or beside ``eval_split``.
    eval_split : str or None
        The files or the split to evaluate on; None holds prompts out.
    eval_fraction : float or None
        Share of the prompts held out; None is 0.1. Not with ``eval_split`` or ``split``.
    prompt : str or None
        Column of the prompt; None is "prompt", or no column where responses repeat the prompt.
    prompt_in : {"column", "responses"}
        ``responses``: each response repeats the whole conversation. Of lists of messages, the last is the response and
        what comes before must be the same for all; texts begin with the text in ``prompt``, or are transcripts that
        split at the last "\\n\\nAssistant:".
    chosen, rejected : str or None
        Column of the chosen, and of the rejected response of a pair.
    responses : tuple of str
        One column that lists the candidates, or a column for each.
    choice : str or None
        Column that says which candidate was chosen.
    choice_by : {"index", "text", "column"}
        What ``choice`` holds: the candidate's number counted from 0, its text, or the name of its column.
    sets : {"pairs", "sets"}
        A comparison of the chosen candidate with each other one, each of the whole weight, or one comparison of all.
    annotator_id : str or None
        Column of who chose.
    weight : str or None
        Column of how often the choice counts.
    pair_id : str or None
        Column of a whole number that names the row; None counts the rows. With ``sets: pairs``, three ``responses`` or
        more become pairs named 100 * pair_id + index of the rejected one, and two the pair 100 * pair_id.
    split : str or None
        Column of the split: "train", or one of "eval", "test" and "validation". None holds prompts out.
    groups : tuple of str
        Columns that become groups; an empty cell belongs to none.
    """

    source: Literal["table"] = "table"
    path: str
    train_split: str | None = None
    eval_split: str | None = None
    eval_fraction: float | None = None
    prompt: str | None = None
    prompt_in: Literal["column", "responses"] = "column"
    chosen: str | None = None
    rejected: str | None = None
    responses: tuple[str, ...] = ()
    choice: str | None = None
    choice_by: Literal["index", "text", "column"] = "index"
    sets: Literal["pairs", "sets"] = "pairs"
    annotator_id: str | None = None
    weight: str | None = None
    pair_id: str | None = None
    split: str | None = None
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        own = [name for name in ("eval_split", "split") if getattr(self, name) is not None]
        require(len(own) < 2, "split", self.split, "none beside eval_split", "leaving one of them out")
        if self.eval_fraction is not None:
            require(not own, "eval_fraction", self.eval_fraction, f"none beside {own}", "leaving one of them out")
            _share(self.eval_fraction)
        kinds = (("chosen", "rejected"), ("responses", "choice"))
        given = {name: value for kind in kinds for name in kind if (value := getattr(self, name))}
        begun = [kind for kind in kinds if not given.keys().isdisjoint(kind)]
        missing = [name for kind in begun for name in kind if name not in given]
        if missing or len(begun) > 1:
            wrong = missing[0] if missing else "responses"
            beside = ", ".join(f"{name}={value!r}" for name, value in given.items() if name != wrong)
            raise InvalidInputError(
                explain(
                    wrong,
                    got=f"{getattr(self, wrong)!r} beside {beside}",
                    expected="both of chosen and rejected, or both of responses and choice",
                    hint="naming both columns of one kind and none of the other",
                )
            )
        if not self.responses:
            require(self.choice_by == "index", "choice_by", self.choice_by, "no choice_by where there are no responses")
            require(self.sets == "pairs", "sets", self.sets, "pairs where there are no responses")
        require(self.choice_by != "column" or len(self.responses) > 1, "responses", self.responses, "a column for each")


@dataclass(frozen=True, kw_only=True)
class Mg2019Data(FewPromptsSettings):
    """Choices among two to four short texts, 16 questions, 1,760 people (McCausland and Gerringer 2019).

    Parameters
    ----------
    path : str
        A folder with ``trials.csv``, ``subjects.csv`` and ``domains.json``.
    groups : tuple of str
        Columns of the subjects that become groups, beside ``domain``.
    """

    source: Literal["mg2019"] = "mg2019"
    path: str = "$MIXLOGIT_DATA/mg2019"
    groups: tuple[str, ...] = ("sex", "educ", "region", "race", "age")


@dataclass(frozen=True, kw_only=True)
class Mms2019Data(FewPromptsSettings):
    """Choices among two to five options, 32 domains, 1,042 people (McCausland, Marley and Davis-Stober 2019).

    Parameters
    ----------
    path : str
        A folder with ``trials.csv``, ``subjects.csv`` and ``objects.json``.
    options : {"words", "words_and_numbers"}
        Domains to read. Those of images are always set aside; those whose options are numbers are one attribute of what
        people saw, and are set aside by ``words``.
    question : str
        The data hold no questions: this one is asked, with the name of the domain in place of ``{domain}``.
    groups : tuple of str
        Columns of the subjects that become groups, beside ``domain``.
    """

    source: Literal["mms2019"] = "mms2019"
    path: str = "$MIXLOGIT_DATA/mms2019"
    options: Literal["words", "words_and_numbers"] = "words"
    question: str = "{domain}: which one do you choose?"
    groups: tuple[str, ...] = ("sex", "location")

    def __post_init__(self) -> None:
        super().__post_init__()
        require("{domain}" in self.question, "question", self.question, "a text with {domain} in it")


@dataclass(frozen=True, kw_only=True)
class HumourData(ReaderSettings):
    """Pairs of short texts with vote counts: a folder with ``items.csv`` and ``pair_counts.csv``.

    Parameters
    ----------
    eval_fraction : float
        Share of the texts held out. Pairs of two held-out texts are evaluated, pairs of two others
        are trained on; pairs across the two are set aside and counted.
    max_train, max_eval : int or None
        Keep a random part of this many pairs.
    """

    source: Literal["humour"] = "humour"
    path: str = "$MIXLOGIT_DATA/humour_pairs"
    eval_fraction: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        _share(self.eval_fraction)


DataConfig = SimulatedData | HHData | PrismData | CommunityData | TableData | Mg2019Data | Mms2019Data | HumourData


def _share(eval_fraction: float) -> None:
    require(0 < eval_fraction < 1, "eval_fraction", eval_fraction, "a share between 0 and 1")
