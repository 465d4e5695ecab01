"""`Expression`: parses a reward such as "qed*sa" into terms of `chemistry`, products and weighted means.

    average  := product { "+" product }                     a + b      (a + b) / 2, "+" is the mean
    product  := [ number "*" ] power { "*" power }          2*a + b    (2a + b) / 3, the number is a weight
    power    := atom [ "^" number ]                         a^2*b      a * a * b
    atom     := "(" average ")" | "mean(" average { "," average } ")" | term | file.py:function | command
    term     := name [ "[" anything, with its own brackets in pairs "]" ] | pmo:task

So qed*sa is a product, mean(qed,sa) and qed+sa are the same, 2*qed+sa is a weighted mean; a weight outside a mean raises
ValueError. For names given as `outside` (seh), and for functions, the caller computes scores of a whole batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from gflownet.rewards.chemistry import SYNOPSIS, Floats, Term, term
from gflownet.rewards.oracle import COMMAND
from gflownet.rewards.pmo import pmo_term

FILE = re.compile(r"[^\s*+^()\[\],]+\.py:[A-Za-z_]\w*")
NAME = re.compile(r"pmo:\w*|[A-Za-z_]\w*")
NUMBER = re.compile(r"\d+\.?\d*|\.\d+")
LONGEST = 20_000  # characters; similar[SMILES] of a large molecule has 200
DEEPEST = 50  # the deepest nesting of brackets
T = TypeVar("T")


class Node(Protocol):
    """A node of the expression tree."""

    def __call__(self, scores: Mapping[str, Floats]) -> Floats:
        """The value [B] from the terms' scores [B], by label."""


@dataclass(frozen=True)
class Leaf:
    """A term, outside name or function, by its label."""

    label: str

    def __call__(self, scores: Mapping[str, Floats]) -> Floats:
        return scores[self.label]


@dataclass(frozen=True)
class Power:
    base: Node
    exponent: float

    def __call__(self, scores: Mapping[str, Floats]) -> Floats:
        return self.base(scores) ** self.exponent


@dataclass(frozen=True)
class Product:
    factors: tuple[Node, ...]

    def __call__(self, scores: Mapping[str, Floats]) -> Floats:
        return np.prod([factor(scores) for factor in self.factors], axis=0)


@dataclass(frozen=True)
class Mean:
    weights: tuple[float, ...]
    nodes: tuple[Node, ...]

    def __call__(self, scores: Mapping[str, Floats]) -> Floats:
        return np.average([node(scores) for node in self.nodes], axis=0, weights=self.weights)


@dataclass(frozen=True)
class Expression:
    """The text, its tree, and the leaves: terms of `chemistry`, outside names, functions (file.py:function, or COMMAND)."""

    text: str
    root: Node
    terms: tuple[Term, ...]
    outside: tuple[str, ...]
    functions: tuple[str, ...]

    @staticmethod
    def parse(text: str, outside: Collection[str] = ()) -> Expression:
        """Parse a reward.

        Args:
            text: the expression.
            outside: names of scores that the caller computes.

        Raises:
            ValueError: the text is invalid; the message has the position and what is expected there.
        """
        return _Parser(text, outside).expression()


class _Parser:
    """A recursive descent parser, one method for each rule. A rule that may have a weight returns (weight, tree)."""

    def __init__(self, text: str, outside: Collection[str]) -> None:
        if len(text) > LONGEST:
            raise ValueError(
                f"the reward has {len(text):,} characters, expected at most {LONGEST:,}: write it as file.py:function"
            )
        self.text, self.known, self.at, self.depth = text, outside, 0, 0
        if (odd := next((i for i, c in enumerate(text) if not (c.isprintable() or c.isspace())), None)) is not None:
            raise self.error("expected printable characters", odd)
        self.terms: dict[str, Term] = {}
        self.outside: list[str] = []
        self.functions: list[str] = []

    def expression(self) -> Expression:
        root = self.alone(self.average())
        if self.at < len(self.text):
            raise self.error('expected "*", "+", "^" or the end')
        outside, functions = tuple(dict.fromkeys(self.outside)), tuple(dict.fromkeys(self.functions))
        return Expression(self.text, root, tuple(self.terms.values()), outside, functions)

    def average(self) -> tuple[float, Node]:
        products = self.separated("+", self.product)
        return products[0] if len(products) == 1 else self.mean(products)

    def product(self) -> tuple[float, Node]:
        weight = 1.0
        if not self.rest(FILE) and (number := self.match(NUMBER)) is not None:
            weight = float(number)
            if not self.take("*"):
                raise self.error("expected * and a term after a weight, as in 2*qed+sa")
        factors = tuple(self.separated("*", self.power))
        return weight, factors[0] if len(factors) == 1 else Product(factors)

    def power(self) -> Node:
        base = self.atom()
        if not self.take("^"):
            return base
        exponent = self.match(NUMBER)
        if exponent is None:
            raise self.error("expected a number after ^, as in qed^2")
        return Power(base, float(exponent))

    def atom(self) -> Node:
        if self.take("("):
            return self.alone(self.inside(self.average))
        if (file := self.match(FILE)) is not None:
            self.functions.append(file)
            return Leaf(file)
        start, name = self.at, self.match(NAME) or ""
        if name == "mean" and self.take("("):
            return self.inside(lambda: self.mean(self.separated(",", self.average)))[1]
        if name in self.known:
            self.outside.append(name)
            return Leaf(name)
        if name == COMMAND:
            self.functions.append(name)
            return Leaf(name)
        brackets = self.brackets()
        try:
            found = pmo_term(name[4:], brackets) if name.startswith("pmo:") else term(name, brackets)
        except KeyError:
            known = ", ".join((*self.known, *SYNOPSIS, "pmo:TASK"))
            raise self.error(f"expected a term, which is one of {known}, file.py:function or mean(a,b)", start) from None
        except ValueError as error:
            raise self.error(str(error), start) from None
        self.terms[found.label] = found
        return Leaf(found.label)

    def brackets(self) -> str | None:
        """The text between [ and the matching ]; SMILES may contain brackets too."""
        start = self.at
        if self.text[start : start + 1] != "[":
            return None
        depth = 0
        for i in range(start, len(self.text)):
            depth += {"[": 1, "]": -1}.get(self.text[i], 0)
            if depth == 0:
                self.at = i + 1
                return self.text[start + 1 : i].strip()
        raise self.error("this bracket is never closed", start)

    # -- weights

    def mean(self, weighted: list[tuple[float, Node]]) -> tuple[float, Node]:
        weights, nodes = zip(*weighted, strict=True)
        if sum(weights) == 0:
            raise self.error("all weights of the mean before this are 0")
        return 1.0, Mean(weights, nodes)

    def alone(self, weighted: tuple[float, Node]) -> Node:
        if weighted[0] != 1:
            raise self.error(f"the weight {weighted[0]:g} before this is outside a mean, expected a mean as in 2*qed+sa")
        return weighted[1]

    # -- characters

    def rest(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1
        return pattern.match(self.text, self.at)

    def match(self, pattern: re.Pattern[str]) -> str | None:
        found = self.rest(pattern)
        self.at = found.end() if found else self.at
        return found[0] if found else None

    def take(self, character: str) -> bool:
        return self.match(re.compile(re.escape(character))) is not None

    def separated(self, by: str, rule: Callable[[], T]) -> list[T]:
        items = [rule()]
        while self.take(by):
            items.append(rule())
        return items

    def inside(self, rule: Callable[[], T]) -> T:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.error(f"expected at most {DEEPEST} brackets within brackets")
        value = rule()
        if not self.take(")"):
            raise self.error('expected ")"')
        self.depth -= 1
        return value

    def error(self, message: str, at: int | None = None) -> ValueError:
        at = self.at if at is None else at
        here = self.text[at : at + 20]
        return ValueError(f'reward "{self.text:.80}", character {at + 1} ({repr(here) if here else "the end"}): {message}')
