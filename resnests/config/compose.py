"""Tell Hydra the schema it composes against, our sweeper, and where conf/ is; and print what it
says of a mistake in a line.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args, get_type_hints

import hydra
import omegaconf
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException
from omegaconf import OmegaConf
from yaml import MarkedYAMLError

from resnests.config.schema import PARTS, Config, hydra_schema
from resnests.errors import UserError, require

CHOICES = {
    "launcher": "joblib",
    "sweeper": "grid",
    "job_logging": "none",
    "hydra_logging": "none",
}
OWNERS = {"tune": "tune", "analysis": "analyze"}  # the one task that has such options
SWEEPER = "hydra_plugins.resnests_sweeper.grid_sweeper.GridSweeper"


def register() -> None:
    """Make the schema, the sweeper and our choices for Hydra's own groups known to Hydra, whatever
    directory its configuration comes from.

    The choices are defaults of Hydra's own configuration, not overrides in config.yaml: of two
    overrides in files Hydra takes the one further up, so that those of an experiment file would be
    ignored without a word.
    """
    store = ConfigStore.instance()
    node = HydraConf()
    node.defaults = [
        {group: CHOICES.get(group, choice) for group, choice in entry.items()}
        for entry in node.defaults
    ]
    store.store(group="hydra", name="config", node=node, provider="resnests")
    store.store(name="schema", node=hydra_schema())
    store.store(group="hydra/sweeper", name="grid", node={"_target_": SWEEPER, "params": {}})


def conf_dir() -> Path:
    """Return the folder conf/: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def require_words(words: Sequence[str]) -> None:
    """Raise a UserError for what Hydra refuses with a stack trace or without the mend, or takes for
    something else than text.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise UserError("the folder of the command was deleted: expected one that exists") from None
    for word in [*words, here]:
        if re.search(r"[\ud800-\udfff]", word):  # what Python makes of other bytes
            raise UserError(f"{word}: expected text in UTF-8, as it goes on record")
    _require_keys(words)
    for word in words:
        key, equals, text = word.lstrip("+").partition("=")
        if word.startswith("~hydra"):
            raise UserError(f"{word}: expected another choice, as Hydra works with each of its own")
        if not equals or word.startswith("-"):
            continue
        try:
            value = OverridesParser.create().parse_override(word).value()
        except HydraException as error:
            _require_text(word, error)
            reason = str(error).splitlines()[0]
            raise UserError(f"{word}: expected a value as Hydra reads it ({reason})") from None
        if (conf_dir() / key).is_dir() or key.split("/")[0] == "hydra":
            _require_names(key, text, value)
        elif (is_text := key in _text_keys()) or key.startswith(("logger.", "hydra.launcher.")):
            items = re.split(r"[,()\s]+", text)
            # Others know which of their values are text: no number is written with _
            mine = [one for one in items if one and (is_text or "_" in one)]
            numbers = [one for one in mine if _is_read_as_number(one)]
            mend = _quoted(f"{key}={text}")
            expected = f"text, which needs quotes as it could be a number: {mend}"
            require(not numbers, key, text, expected)


def require_used(words: Iterable[str], task: str) -> None:
    """Raise a UserError for what was typed, the overrides `words`, and `task` would ignore.

    What a file brings for another task is no mistake.
    """
    for word in words:
        key, _, text = word.lstrip("+").partition("=")
        owner = OWNERS.get(key.partition(".")[0], task)
        expected = f"task={owner}, whose option it is, not task={task}"
        require(owner == task, key, text, expected)


def _require_keys(words: Sequence[str]) -> None:
    """Raise a UserError for a word without a key, as of a value that has a space and no quotes."""
    for place, (before, word) in enumerate(zip(["", *words], words, strict=False)):
        alone = before in ("-m", "--multirun") or "=" in before
        is_of_flag = before.startswith("-") and not alone
        if not _has_no_key(word) or is_of_flag:
            continue
        mend = ""
        if "=" in before and not before.startswith("-"):
            whole = " ".join([before, *takewhile(_has_no_key, words[place:])])
            is_text = before.lstrip("+").partition("=")[0] in _text_keys()
            quoted = _quoted(whole) if is_text else shlex.quote(whole)
            mend = f"; a value with a space needs quotes: {quoted}"
        raise UserError(f"{word}: expected KEY=VALUE{mend}")


def _has_no_key(word: str) -> bool:
    return "=" not in word and not word.startswith(("-", "~"))


def _require_names(key: str, text: str, value: Any) -> None:
    """Raise a UserError unless `value` of a group is a name, or several."""
    chosen: list[Any] = value.list if isinstance(value, ChoiceSweep) else [value]
    lists = [one for one in chosen if isinstance(one, list)]
    names = [one for one in chosen if one not in lists] + [name for one in lists for name in one]
    bad = [one for one in names if one is None or isinstance(one, bool | int | float | dict | list)]
    expected = f"names of files in {key}/, in quotes where they could be numbers"
    require(not bad, key, text, expected)
    # Of two networks, or lists of transforms, Hydra would take the last without a word
    expected = "one name; with -m and without brackets each of several in turn"
    require(not lists or key not in (*PARTS, "augment"), key, text, expected)


def _require_text(word: str, error: HydraException) -> None:
    """Raise a UserError where quotes, or a list, are what `word` lacks, which Hydra cannot read."""
    key, _, text = word.lstrip("+").partition("=")
    if "NoneType is incompatible" in str(error):
        raise UserError(f"{word}: expected null outside of choice(): {key}=null,...") from None
    quoted = _quoted(word)
    try:
        OverridesParser.create().parse_override(shlex.split(quoted)[0])
    except HydraException:
        return
    # A value with brackets or quotes may be a list, a mapping or a sweep with a slip in it
    if key in _text_keys() or not re.search(r"[][(){},'\"]", text):
        raise UserError(f"{word}: expected quotes: {quoted}")


def _quoted(word: str) -> str:
    """Return `word` as one types it so that Hydra takes its value for text."""
    key, _, text = word.partition("=")
    escaped = re.sub(r'(\\*)"', r"\1\1\"", text)
    return shlex.quote(f'{key}="{escaped}"')


def _is_read_as_number(text: str) -> bool:
    """Return whether Hydra takes `text` for a number that it would write otherwise, as 1_1 for
    11.
    """
    try:
        value = OverridesParser.create().parse_override(f"key={text}").value()
    except HydraException:
        return False
    return isinstance(value, int | float) and str(value) != text


@cache
def _text_keys() -> set[str]:
    """Return the dotted keys of all values that are text."""
    return set(_keys_of_text(Config, ""))


def _keys_of_text(kind: Any, prefix: str) -> Iterator[str]:
    for name, inner in get_type_hints(kind).items():
        if inner in (str, str | None):
            yield prefix + name
        for one in get_args(inner) or [inner]:  # as Cluster | None
            if is_dataclass(one):
                yield from _keys_of_text(one, f"{prefix}{name}.")


def in_one_line(error: Exception) -> str:
    """Return what Hydra says of an override that it refuses, without the structure of our code, and
    which key may have been meant; or where a YAML file breaks off, and why.
    """
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark
        place = f"{mark.name}, line {mark.line + 1}" if mark else "configuration"
        return str(UserError(f"{place}: expected YAML ({error.problem})"))
    said = [line.strip() for e in (error, error.__cause__) if e for line in str(e).splitlines()]
    skipped = ["full_key:", "reference_type=", "object_type=", "Config search path:", "provider="]
    if any(" not in '" in line for line in said):
        skipped.append("To append")  # to what has no other keys
    kept = [line for line in said if line and not line.startswith(tuple(skipped))]
    if one_of_several := re.search("Could not load '(.+)/.+'", kept[0]):  # as metrics=[f1,ece]
        group = one_of_several[1]
        folders = re.findall("path=file://(.+)", str(error))  # --config-dir among them
        there = sorted({path.stem for one in folders for path in Path(one, group).glob("*.yaml")})
        kept += [f"Available options in '{group}': {', '.join(there)}"] if there else []
    if any("@experiment." in line or "Key 'experiment' not" in line for line in kept):
        first = "# @package _global_ as the first line of its file"
        kept.append(f"(expected {first}, without a byte order mark)")
    unknown = re.match("Could not override '(.+)'", kept[0])
    known = [*_keys(OmegaConf.to_container(OmegaConf.structured(hydra_schema())))]
    known += [f"{group}.{item.name}" for group, kind in PARTS.items() for item in fields(kind)]
    close = difflib.get_close_matches(unknown[1], known, 1, 0.8) if unknown else []
    return " ".join([*kept, *(f"(did you mean {key}?)" for key in close)])


def hydras_own(error: Exception, words: Sequence[str]) -> UserError | None:
    """Return a line for an error that Hydra makes of a YAML file that it loads, or of the words for
    itself, as of hydra.launcher=null; None where it is not Hydra's, or nothing was asked of it.
    """
    place_of = {"file_config_source.py": "full_path", "config_repository.py": "config_path"}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        place = frame.f_locals.get(place_of.get(Path(frame.f_code.co_filename).name, ""))
        if place:  # as of text in another encoding, or defaults that are no list
            reason = str(error).splitlines()[0]
            return UserError(f"{place}: expected YAML in UTF-8 as Hydra reads it ({reason})")
    asked = [word for word in words if re.match(r"[+~]*hydra[./=]", word)]
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    packages = [Path(module.__path__[0]) for module in (hydra, omegaconf)]
    if not asked or not any(Path(raised_in).is_relative_to(package) for package in packages):
        return None
    reason = f"{type(error).__name__}: {error}".removesuffix(": ")
    return UserError(f"{' '.join(asked)}: refused by Hydra ({reason})")


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield prefix + key
        yield from _keys(value, f"{prefix}{key}.")
