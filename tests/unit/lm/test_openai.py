"""Claims about the engine behind a server, against a toy language model served over HTTP here."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from exemplar import lm as engine
from exemplar.errors import ModelError, PromptError

pytest.importorskip("openai")
from exemplar.lm.openai.engine import OpenAiLM

KEY = "sk-a-secret-that-nobody-may-see"
END_OF_TEXT = ""
VOCABULARY = [
    "\n",
    "\n\n",
    END_OF_TEXT,
    " five",
    "Yes",
    "No",
    ",",
    " but",
    " a",
    "good",
    "ness",
    ".",
]
LABELS = ["Yes", "No", "Yes, but no", "good", "goodness", "No\U0001f992", "No\U0001f993"]
PROMPTS = [f"Review {number}: a warm, funny film\nIs it good?\n" for number in range(12)]
ANSWERS = ["Yes", "goodness me", "No, it is dull", "\U0001f992 at a café"] * 3


def pieces(text: str) -> list[str]:
    """The toy's tokens; a character beyond the basic plane is four tokens."""
    found = re.findall(r"\n\n|\n| ?\w{1,4}|[^\w\n]", text)
    assert "".join(found) == text
    return found


def tokens_of(text: str) -> list[str]:
    """The tokens, told apart: pieces of one character are numbered."""
    parts = [[f"{p}#{n}" for n in range(4)] if ord(p[-1]) > 0xFFFF else [p] for p in pieces(text)]
    return [token for part in parts for token in part]


def logit(before: list[str], token: str) -> float:
    told = "\x1f".join(["toy", *before, token]).encode()
    return 6 * int.from_bytes(hashlib.blake2b(told, digest_size=4).digest(), "big") / 2**32


@cache
def normaliser(*before: str) -> float:
    return math.log(sum(math.exp(logit(list(before), token)) for token in VOCABULARY))


def logprob(before: list[str], token: str) -> float:
    return logit(before, token) - normaliser(*before)


def greedy(before: list[str]) -> str:
    return max(VOCABULARY, key=lambda token: logit(before, token))


def expected_mean(prompt: str, answer: str) -> float:
    """The mean over the tokens that end behind the prompt, one by one."""
    tokens, values, end = tokens_of(prompt + answer), [], 0
    for place, token in enumerate(tokens):
        name, _, part = token.partition("#")
        end += len(name) if part in ("", "3") else 0
        # Every piece of a character ends where the character does.
        last = end if part in ("", "3") else end + len(name)
        if last > len(prompt):
            values.append(logprob(tokens[:place], token))
    return sum(values) / len(values)


def expected_label(prompt: str, labels: list[str]) -> str:
    """Greedy decoding that may only leave the labels' token sequences at their ends."""
    alive = {label: tokens_of(prompt + label) for label in labels}
    depth = 0
    while len(alive) > 1:
        before = next(iter(alive.values()))[:depth]
        assert all(tokens[:depth] == before for tokens in alive.values())
        worth = {}
        for tokens in alive.values():
            if len(tokens) == depth:
                ended = greedy(before) == END_OF_TEXT
                worth[None] = math.inf if ended else max(logprob(before, t) for t in ("\n", "\n\n"))
            else:
                worth[tokens[depth]] = logprob(before, tokens[depth])
        best = max(worth, key=worth.__getitem__)
        alive = {
            label: tokens
            for label, tokens in alive.items()
            if (tokens[depth] if len(tokens) > depth else None) == best
        }
        depth += 1
    return next(iter(alive))


class ToyServer(ThreadingHTTPServer):
    """Serves the toy; `traits` change how, `faults` are used up one a request."""

    daemon_threads, block_on_close = True, False

    def __init__(self, **traits):
        super().__init__(("127.0.0.1", 0), Handler)
        self.traits = {"offsets": "none", "lists": True, "context": 10_000, **traits}
        self.faults: deque[dict] = deque()
        self.requests: list[dict] = []
        self.keys: list[str] = []

    def handle_error(self, request, client_address):
        """Clients that wait no longer are part of the tests."""

    @property
    def ref(self) -> str:
        return f"openai:toy@http://127.0.0.1:{self.server_port}/v1"

    def sent(self) -> list[str]:
        """Every text that came in to be echoed, the probe's aside."""
        asked = [r["prompt"] for r in self.requests if r.get("echo")]
        texts = [t for p in asked for t in ([p] if isinstance(p, str) else p)]
        return [text for text in texts if not text.startswith("One, two")]


class Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    server: ToyServer

    def log_message(self, *arguments):
        """Keep the terminal clean."""

    def do_POST(self):
        traits = self.server.traits
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        self.server.keys.append(self.headers["Authorization"])
        fault = self.server.faults.popleft() if self.server.faults else traits.get("always", {})
        time.sleep(fault.get("sleep", 0))
        if fault.get("cut"):
            self.close_connection = True
            self.connection.close()
            return None
        if "status" in fault:
            return self.answer(fault["status"], fault.get("body", b"{}"), fault.get("headers", {}))
        if self.path != "/v1/completions" or body["model"] != "toy":
            return self.refuse(404, f"The model `{body['model']}` does not exist.")
        texts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
        if len(texts) > 1 and not traits["lists"]:
            return self.refuse(400, "prompt must be a string")
        longest = max(len(tokens_of(text)) for text in texts)
        if longest + body["max_tokens"] > traits["context"]:
            return self.refuse(400, f"maximum context length is {traits['context']} tokens")
        if traits.get("shuffled"):
            time.sleep(0.02 * (len(self.server.requests) % 3))
        choices = [self.choice(n, text, body) for n, text in enumerate(texts)]
        usage = {
            "prompt_tokens": sum(len(tokens_of(text)) for text in texts),
            "completion_tokens": sum(choice.pop("generated") for choice in choices),
        }
        told = {"object": "text_completion", "choices": choices[::-1]}
        return self.answer(
            200, json.dumps(told | ({"usage": usage} if traits.get("usage", 1) else {}))
        )

    def choice(self, index: int, text: str, body: dict) -> dict:
        traits, before = self.server.traits, tokens_of(text)
        generated: list[str] = []
        while len(generated) < body["max_tokens"] and END_OF_TEXT not in generated:
            generated.append(greedy(before + generated))
        shown = "".join(generated)
        for stop in body.get("stop") or []:
            shown = shown.split(stop)[0]
        ended = generated[-1] == END_OF_TEXT
        if ended and traits.get("drops_end"):
            generated.pop()
        echo = body.get("echo") and not traits.get("no_echo")
        tokens, start = before + generated, 0 if echo else len(before)
        values: list[float | None] = [logprob(tokens[:n], t) for n, t in enumerate(tokens)]
        values[0] = None
        if traits.get("shifted") and echo:
            values = [None, *(logprob(tokens[:n], tokens[n - 1]) for n in range(2, len(tokens)))]
            values.append(values[-1])
        if traits.get("value") and echo:
            values[len(values) // 2] = float(traits["value"])
        if traits.get("blind") and echo:
            values = [None] * len(values)
        strings = [re.sub(r"^.#\d$", traits.get("broken", "\ufffd"), token) for token in tokens]
        if traits.get("bos") and echo:
            strings, values = ["<s>", *strings], [None, *values]
            values[1] = logprob([], tokens[0])
        offsets = {"sglang": [-1] * len(strings), "none": None}.get(traits["offsets"])
        if traits["offsets"] == "vllm":
            offsets = [len("".join(strings[:n])) for n in range(len(strings))]
        told = {"tokens": strings[start:], "token_logprobs": values[start:], "text_offset": offsets}
        if traits.get("alternatives", 1) and body.get("logprobs") and not echo:
            named = [
                {t: logprob(tokens[:n], t) for t in VOCABULARY} for n in range(start, len(tokens))
            ]
            most = body["logprobs"]
            told["top_logprobs"] = [
                dict(sorted(each.items(), key=lambda item: -item[1])[:most]) for each in named
            ]
        if traits.get("no_logprobs") or body.get("logprobs") is None:
            told = None
        return {
            "index": index,
            "text": (text if echo else "") + shown,
            "logprobs": told,
            "finish_reason": "stop" if ended else "length",
            "generated": len(generated),
        }

    def refuse(self, status: int, message: str) -> None:
        self.answer(status, json.dumps({"error": {"message": message, "code": status}}))

    def answer(self, status: int, body: str | bytes, headers: dict | None = None) -> None:
        content = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def serve() -> Iterator:
    running = []

    def start(**traits) -> ToyServer:
        server = ToyServer(**traits)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def lm_for(server: ToyServer, **settings) -> OpenAiLM:
    return OpenAiLM(server.ref, **{"max_retries": 0, "timeout": 5.0, **settings})


SERVERS = {
    "plain": {},
    "vLLM: offsets count the beginning of text": {"bos": True, "offsets": "vllm"},
    "SGLang: no offsets": {"offsets": "sglang"},
    "llama.cpp: no lists, pieces told as nothing, no end token": {
        "lists": False,
        "broken": "",
        "drops_end": True,
    },
    "no usage": {"usage": 0},
}


@pytest.mark.parametrize("traits", SERVERS.values(), ids=SERVERS)
def test_scores_are_the_models_own_probabilities(serve, traits):
    """Off by a token, every score would still look plausible."""
    found = lm_for(serve(**traits)).logprobs(PROMPTS, ANSWERS)
    wanted = [expected_mean(p, a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    assert found == pytest.approx(wanted, abs=1e-9)


def test_a_token_over_the_joint_belongs_to_the_answer(serve):
    """The engines would rank candidates differently if they cut the answer at different tokens."""
    found = lm_for(serve()).logprobs(["Is it go", "\U0001f992 is it "], ["od enough", "\U0001f993"])
    assert tokens_of("Is it good enough")[2] == " good"
    wanted = [
        expected_mean("Is it go", "od enough"),
        expected_mean("\U0001f992 is it ", "\U0001f993"),
    ]
    assert found == pytest.approx(wanted, abs=1e-9)


def test_offsets_decide_where_the_strings_are_not_the_texts(serve):
    """Some tokenizers tell a token other than it stands in the text."""
    server = serve()
    wanted = expected_mean(PROMPTS[0], "Yes")
    text = PROMPTS[0] + "Yes"
    tokens = tokens_of(text)
    offsets = [len("".join(tokens[:n])) for n in range(len(tokens) + 1)]
    values = [None, *(logprob(tokens[:n], t) for n, t in enumerate(tokens) if n), -1.0]
    told = {"tokens": ["?"] * len(values), "token_logprobs": values, "text_offset": offsets}
    lm = lm_for(server)
    lm.logprobs(PROMPTS[1:2], ["No"])
    choice = {"index": 0, "text": text, "logprobs": told, "finish_reason": "length"}
    server.faults.append({"status": 200, "body": json.dumps({"choices": [choice]}).encode()})
    assert lm.logprobs(PROMPTS[:1], ["Yes"]) == pytest.approx([wanted], abs=1e-9)


def test_order_and_copies_survive_answers_out_of_order(serve):
    """Requests that overtake each other must not swap scores; copies must not cost requests."""
    server = serve(shuffled=True)
    lm = lm_for(server, batch_size=2)
    prompts, answers = PROMPTS * 3, ANSWERS + ANSWERS[::-1] + ANSWERS
    found = lm.logprobs(prompts, answers)
    wanted = [expected_mean(p, a) for p, a in zip(prompts, answers, strict=True)]
    assert found == pytest.approx(wanted, abs=1e-9)
    texts = [p + a for p, a in zip(prompts, answers, strict=True)]
    assert sorted(server.sent()) == sorted(set(texts))
    assert lm.stats.sequences == len(prompts)
    assert lm.stats.tokens_given == sum(len(tokens_of(text)) for text in texts)
    assert lm.stats.tokens_computed == sum(len(tokens_of(text)) for text in set(texts))


def test_batches_are_as_large_as_the_server_takes(serve):
    """One text a request wastes the server; a list where none is taken fails the whole run."""
    for lists, wanted in ((True, 4), (False, 1)):
        server = serve(lists=lists)
        lm_for(server, batch_size=4).logprobs(PROMPTS[:8], ANSWERS[:8])
        scoring = [r["prompt"] for r in server.requests if "Review" in str(r["prompt"])]
        assert {1 if isinstance(p, str) else len(p) for p in scoring} == {wanted}


@pytest.mark.parametrize("traits", [{}, {"bos": True}, {"drops_end": True}, {"broken": ""}])
def test_labels_are_decoded_greedily(serve, traits):
    """Another rule would answer otherwise than the same model run here."""
    labels = [*LABELS[:5], "Maybe"]
    found = lm_for(serve(**traits), batch_size=64).generate(PROMPTS, labels=labels)
    wanted = [expected_label(prompt, labels) for prompt in PROMPTS]
    assert found == wanted
    assert len(set(wanted)) > 2  # the toy does not always choose the same
    assert set(wanted) & {"Yes", "good"}  # and sometimes ends a label that another continues


def test_a_label_that_another_continues_can_win(serve):
    """`Yes` would never be answered beside `Yes, but no`; a line or the text may end behind it."""
    labels, prompts = ["Yes", "Yes, but no"], [f"Question {number}?\n" for number in range(24)]
    found = lm_for(serve(), batch_size=64).generate(prompts, labels=labels)
    assert found == [expected_label(prompt, labels) for prompt in prompts]
    after = [tokens_of(prompt + "Yes") for prompt in prompts]
    likeliest = {greedy(tokens) for tokens in after}
    assert likeliest >= {END_OF_TEXT, "\n", "\n\n", ","}  # the toy shows every case


def test_labels_that_part_within_a_character_stay_apart(serve):
    """Their tokens are told alike, so the first label would always win."""
    labels = LABELS[-2:]
    found = lm_for(serve(), batch_size=64).generate(PROMPTS, labels=labels)

    def whole(prompt: str, label: str) -> float:
        tokens = tokens_of(prompt + label)
        return sum(logprob(tokens[:n], tokens[n]) for n in range(len(tokens) - 4, len(tokens)))

    assert found == [max(labels, key=lambda label: whole(p, label)) for p in PROMPTS]
    assert set(found) == set(labels)


def expected_line(prompt: str, most: int) -> str:
    """Greedy decoding to the first newline, which may not come first."""
    tokens, start = tokens_of(prompt), len(tokens_of(prompt))
    visible = [token for token in VOCABULARY if token.strip() or "\n" not in token]
    while len(tokens) < start + most and END_OF_TEXT not in tokens[start:]:
        choices = VOCABULARY if len(tokens) > start else visible
        tokens.append(max(choices, key=lambda token: logit(tokens, token)))
    return "".join(tokens[start:]).split("\n")[0].strip()


def test_lines_are_greedy_and_end_at_the_newline(serve):
    """What follows the line is the model's next question, not its answer."""
    server = serve()
    lm = lm_for(server)
    found = lm.generate([*PROMPTS, PROMPTS[0]], max_new_tokens=5)
    assert found == [expected_line(prompt, 5) for prompt in [*PROMPTS, PROMPTS[0]]]
    blank = [prompt for prompt in PROMPTS if not greedy(tokens_of(prompt)).strip()]
    assert 0 < len(blank) < len(PROMPTS)  # some lines would be empty without the rule
    # Neither copies nor a probe; where the line came back empty, its beginning, and the rest.
    assert len(PROMPTS) < len(server.requests) <= len(PROMPTS) + 2 * len(blank)
    assert lm.stats.sequences == len(PROMPTS) + 1


def test_a_server_without_alternatives_may_leave_a_line_empty(serve):
    """An invented answer would be worse than none."""
    lines = lm_for(serve(alternatives=0)).generate(PROMPTS, max_new_tokens=5)
    for prompt, line in zip(PROMPTS, lines, strict=True):
        blank = "\n" in greedy(tokens_of(prompt))
        assert line == ("" if blank else expected_line(prompt, 5))


def test_tokens_are_counted_by_the_server_once(serve):
    """Prompts are fitted by this count, again and again for the same text."""
    server = serve()
    lm = lm_for(server)
    assert [lm.count_tokens(PROMPTS[0]) for _ in range(3)] == [len(tokens_of(PROMPTS[0]))] * 3
    assert len(server.requests) == 1
    with pytest.raises(ModelError, match=r"usage\.prompt_tokens"):
        lm_for(serve(usage=0)).count_tokens("text")


def test_a_text_beyond_the_servers_context_still_counts_as_too_long(serve):
    """Prompts are fitted by leaving demonstrations out, which an error would end."""
    lm = lm_for(serve(context=41), max_length=40)
    text = "a word and\n" * 50
    assert len(tokens_of(text)) <= lm.count_tokens(text) <= len(tokens_of(text)) + 8


FAULTS = {
    "too many requests": {"status": 429, "headers": {"Retry-After": "0.1"}},
    "server error": {"status": 500},
    "cut connection": {"cut": True},
    "slow answer": {"sleep": 0.5},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_passing_fault_does_not_show(serve, fault):
    """A run of hours must not end because a server was restarted."""
    server = serve()
    lm = lm_for(server, max_retries=2, timeout=0.3)
    wanted = lm.logprobs(PROMPTS[:1], ANSWERS[:1])
    before = len(server.requests)
    server.faults.append(fault)
    assert lm.logprobs(PROMPTS[:1], ANSWERS[:1]) == wanted
    assert len(server.requests) == before + 2


LASTING = {
    "too many requests": ({"status": 429, "headers": {"Retry-After": "0.1"}}, "too many requests"),
    "server error": ({"status": 500, "body": b'{"error": "no memory"}'}, "no memory"),
    "cut connection": ({"cut": True}, "no connection to http"),
    "slow answer": ({"sleep": 0.3}, r"no answer within 0\.2 seconds"),
}


@pytest.mark.parametrize(("fault", "words"), LASTING.values(), ids=LASTING)
def test_a_lasting_fault_ends_in_plain_words(serve, fault, words):
    """A traceback of an HTTP library tells nobody what to do."""
    server = serve(always=fault)
    with pytest.raises(ModelError, match=words) as caught:
        lm_for(server, max_retries=1, timeout=0.2).logprobs(PROMPTS, ANSWERS)
    assert "after 2 tries" in str(caught.value)
    assert len(server.requests) == 2  # and nothing behind the failed probe


BAD_ANSWERS = [
    (
        {"status": 200, "body": b"<html>welcome</html>"},
        "cannot be read as that.*welcome",
    ),
    ({"status": 200, "body": b'{"choices": [{"te'}, "cannot be read"),
    ({"status": 200, "body": b'{"choices": []}'}, "cannot be read"),
    ({"status": 200, "body": b'{"choices": ["yes"]}'}, "cannot be read"),
    ({"status": 200, "body": b"7"}, "cannot be read"),
    ({"status": 401, "body": b'{"detail": "who?"}'}, "no API key was given.*401.*who"),
    ({"status": 403}, "no API key was given.*403"),
    ({"status": 404}, "the base url"),
    ({"status": 418}, "expected a completion, but the server answered 418"),
]


def test_every_bad_answer_is_one_error_of_ours(serve):
    """Whatever a server returns, the user learns what was expected."""
    server = serve()
    lm = lm_for(server)
    for fault, words in BAD_ANSWERS:
        server.traits["always"] = fault
        for call in (
            lambda: lm.logprobs(PROMPTS, ANSWERS),
            lambda: lm.generate(PROMPTS[:1]),
            lambda: lm.count_tokens("text"),
        ):
            with pytest.raises(ModelError, match=f"(?s){words}"):
                call()


def test_a_refusal_shows_the_servers_words(serve):
    """Only the server knows what it did not like: the settings at first, then the text."""
    fault = {"status": 422, "body": b'{"detail": [{"msg": "not so"}]}'}
    lm = lm_for(serve(always=fault))
    with pytest.raises(ModelError, match=r"not so.*need a server"):
        lm.logprobs(PROMPTS, ANSWERS)
    with pytest.raises(PromptError, match=r"item 0: .*not so"):
        lm.generate(PROMPTS[:1])
    with pytest.raises(PromptError, match=r"not so") as caught:
        lm.count_tokens("text " * 1000)
    assert caught.value.index is None


def test_an_unknown_model_is_named(serve):
    """The commonest mistake: a name that the server spells otherwise."""
    lm = OpenAiLM(serve().ref.replace("toy", "owner/toy@main"), max_retries=0)
    with pytest.raises(ModelError, match=r"owner/toy@main.*does not exist.*check the model's name"):
        lm.logprobs(PROMPTS, ANSWERS)


def test_no_server_is_said_in_plain_words(serve):
    """Expected at first start: the server is not up yet."""
    server = ToyServer()
    server.server_close()
    with pytest.raises(ModelError, match=r"no connection to http.*start it"):
        lm_for(server).logprobs(PROMPTS, ANSWERS)


LACKING = {
    "no_logprobs": "no list of tokens with their log-probabilities.*vLLM, SGLang",
    "no_echo": "not those of the text sent.*echo=true",
    "blind": r"tells no log-probability for \d+ of \d+ prompt tokens.*echo=true",
    "shifted": "at the wrong tokens",
}


@pytest.mark.parametrize("lists", [True, False])
def test_a_server_that_cannot_score_is_found_out_at_once(serve, lists):
    """Silently wrong scores would train the retriever for days on noise."""
    server = serve(lists=lists)
    lm, healthy = lm_for(server), server.traits
    for lack, words in LACKING.items():
        server.traits = healthy | {lack: True}
        for call in (
            lambda: lm.logprobs(PROMPTS, ANSWERS),
            lambda: lm.generate(PROMPTS, labels=["Yes", "No"]),
        ):
            with pytest.raises(ModelError, match=f"(?s){words}"):
                call()
    assert server.sent() == []


def test_a_log_probability_that_is_no_number_is_an_error(serve):
    """NaN among scores sorts anywhere."""
    server = serve()
    lm = lm_for(server)
    lm.logprobs(PROMPTS[:1], ANSWERS[:1])
    for value in ("nan", "inf", "-inf"):
        server.traits["value"] = value
        with pytest.raises(ModelError, match=f"{value}; expected a finite number"):
            lm.logprobs(PROMPTS, ANSWERS)


def test_an_echo_of_another_text_is_refused(serve):
    """A proxy that mixes answers up would mix scores up."""
    server = serve()
    lm = lm_for(server)
    lm.logprobs(PROMPTS[:1], ANSWERS[:1])
    tokens = tokens_of("quite another text")
    told = {"tokens": tokens, "token_logprobs": [None, *[-1.0] * (len(tokens) - 1)]}
    choice = {"index": 0, "text": "", "logprobs": told}
    server.faults.append({"status": 200, "body": json.dumps({"choices": [choice]}).encode()})
    with pytest.raises(ModelError, match="not those of the text sent, which begins 'Review 0"):
        lm.logprobs(PROMPTS[:1], ANSWERS[:1])


@pytest.mark.parametrize("lists", [True, False])
def test_a_text_that_is_too_long_is_named_by_its_place(serve, lists):
    """Among thousands in flight nobody could tell which example to shorten."""
    lm = lm_for(serve(context=40, lists=lists), batch_size=3)
    long = "a word and another " * 10
    for call in (
        lambda: lm.logprobs([*PROMPTS[:5], long], ANSWERS[:6]),
        lambda: lm.generate([*PROMPTS[:5], long], labels=["Yes", "No"]),
        lambda: lm.generate([*PROMPTS[:5], long], max_new_tokens=2),
    ):
        with pytest.raises(PromptError, match=r"item 5:.*maximum context length is 40") as caught:
            call()
        assert caught.value.index == 5


def test_what_has_no_probability_is_refused_before_anything_is_sent(serve):
    """The first token of a text has no probability, and an empty answer has no token."""
    server = serve()
    lm = lm_for(server)
    for prompts, answers, words in (
        (["a\n", ""], ["Yes", "Yes"], "prompt is empty"),
        (["a\n", "b\n"], ["Yes", " \n"], "answer is empty"),
    ):
        with pytest.raises(PromptError, match=f"item 1: the {words}") as caught:
            lm.logprobs(prompts, answers)
        assert caught.value.index == 1
    for labels in (None, ["Yes", "No"]):
        with pytest.raises(PromptError, match="item 1: the prompt is empty"):
            lm.generate(["a\n", ""], labels=labels)
    with pytest.raises(PromptError, match="labels are"):
        lm.generate(["a\n"], labels=["Yes", ""])
    assert lm.logprobs([], []) == lm.generate([], labels=["Yes"]) == lm.generate([]) == []
    assert server.requests == []
    with pytest.raises(PromptError, match=r"item 1: .*first of the whole text") as caught:
        lm.logprobs(["b\n", "go"], ["Yes", "od"])  # one token over both
    assert caught.value.index == 1
    with pytest.raises(PromptError, match=r"item 0: .*first of the whole text"):
        lm.generate(["go"], labels=["od", "ne"])


TELLTALES = [
    {"status": 401, "body": json.dumps({"error": {"message": f"bad key {KEY}"}}).encode()},
    {"status": 500, "body": f"Authorization: Bearer {KEY}".encode()},
    {"status": 422, "body": json.dumps({"detail": [{"got": KEY}]}).encode()},
    {"status": 200, "body": f"<p>{KEY}</p>".encode()},
    {"cut": True},
    {"sleep": 0.3},
]


@pytest.mark.parametrize("login", [False, True])
def test_the_key_shows_nowhere(serve, login, caplog):
    """Messages and logs are pasted into issues and kept with runs."""
    server = serve()
    caplog.set_level(logging.DEBUG)
    ref, key = server.ref, KEY
    if login:
        ref, key = server.ref.replace("//", f"//user:{KEY}@"), None
    lm = OpenAiLM(ref, api_key=key, max_retries=0, timeout=0.2)
    lm.logprobs(PROMPTS[:1], ["Yes"])
    shown = [lm.name, repr(lm), str(lm)]
    for fault in TELLTALES:
        server.traits["always"] = fault
        for call in (lambda: lm.logprobs(PROMPTS[:1], ["Yes"]), lambda: lm.count_tokens("text")):
            with pytest.raises((ModelError, PromptError)) as caught:
                call()
            shown += [repr(caught.value), *traceback.format_exception(caught.value)]
            error = caught.value
            while error := error.__cause__ or error.__context__:
                shown += [repr(error), str(vars(error))]
    shown += [caplog.text, *(str(vars(record)) for record in caplog.records)]
    assert all(("Basic " if login else KEY) in sent for sent in server.keys)  # it did travel
    assert not [text for text in shown if KEY in text]
    assert "openai" in {record.name.partition(".")[0] for record in caplog.records}
    assert lm.name == server.ref


def test_no_key_and_a_key_are_both_taken(serve):
    """Local servers ask for none; the library insists on one."""
    server = serve()
    lm = engine.load(server.ref, max_length=7)
    assert (lm.max_length, lm.dtype, lm.name) == (7, "server", server.ref)
    lm.count_tokens("text")
    lm_for(server, api_key=f"{KEY}\n").count_tokens("text")
    assert server.keys[1] == f"Bearer {KEY}"
    engine.load(server.ref, api_key="another").count_tokens("text")
    assert server.keys[2] == "Bearer another"
    with pytest.raises(ModelError, match="blanks or characters") as caught:
        lm_for(server, api_key=f"{KEY}\n{KEY}")
    assert KEY not in str(caught.value)
    with pytest.raises(ModelError, match="Leave one out"):
        OpenAiLM(server.ref.replace("//", "//user:word@"), api_key=KEY)


@pytest.mark.parametrize(
    "ref",
    [
        "openai:toy",
        "openai:@http://localhost/v1",
        "openai:toy@localhost:8000/v1",
        "openai:toy@http://",
        "openai:toy@http://host/v1?key=secret",
        "openai:toy@user:secret@host/v1",
        "openai:toy@ftp://user:secret@host/v1",
    ],
)
def test_a_malformed_reference_is_explained_without_what_it_may_hide(ref):
    """Half a reference may still hold a password."""
    with pytest.raises(ModelError, match="expected openai:<model>@<base url>") as caught:
        engine.load(ref)
    assert "secret" not in str(caught.value)
