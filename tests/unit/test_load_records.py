"""What a stream's bytes become, and what is kept of it."""

import json
import math
from array import array

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import load_stream
from helpers.client import explain
from helpers.load_records import LoadError, Record, Run, body_of, line_of, read
from helpers.load_stream import Reader, StreamError, reported_error, sentence, status_error


def event(text: str | None = None, finish: str | None = None, usage: int | None = None) -> bytes:
    """An event as vLLM's completions route sends it."""
    choices = [] if text is None else [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]
    chunk = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": choices}
    if usage is not None:
        chunk["usage"] = {"prompt_tokens": 5, "completion_tokens": usage, "total_tokens": 5 + usage}
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()


def chat(delta: dict, finish: str | None = None) -> bytes:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}]})}\n\n".encode()


DONE = b"data: [DONE]\n\n"
ANSWER = [event(" snowy"), event(" – très"), event(" froid.", "stop"), event(usage=7), DONE]


def heard(*parts: tuple[bytes, float]) -> Record:
    """The record after these bytes came at these seconds; the request was sent at 10."""
    record = Record(0, started=3.0)
    reader = Reader(record, 10.0)
    try:
        for data, at in parts:
            reader.feed(data, at)
        reader.finish()
    finally:
        reader.keep()
    return record


def test_the_times_are_those_that_vllm_bench_serve_means():
    record = heard(*zip(ANSWER, [10.5, 10.7, 11.1, 11.2, 11.3], strict=True))
    assert record.ttft == pytest.approx(0.5)
    assert list(record.itl) == pytest.approx([0.2, 0.4])
    assert record.e2e == pytest.approx(1.1), "to the last text, not to the end of the stream"
    assert record.tpot == pytest.approx((1.1 - 0.5) / 6), "by the server's count of tokens: a piece may hold several"
    assert record.ended == pytest.approx(4.1)
    assert (record.prompt_tokens, record.output_tokens, record.finish_reason) == (5, 7, "stop")
    assert record.text == " snowy – très froid." and record.ok


@given(st.lists(st.integers(1, 400), max_size=12))
def test_where_the_network_cuts_the_bytes_does_not_matter(cuts):
    data, parts = b"".join(ANSWER), []
    for cut in cuts:
        parts.append((data[:cut], 11.0))
        data = data[cut:]
    record = heard(*parts, (data, 11.0))
    assert record.text == " snowy – très froid." and len(record.itl) == 2 and record.output_tokens == 7


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: b": a comment to keep the line open\n\n" + data,
        lambda data: b"event: message\nid: 3\n" + data,
        lambda data: data.replace(b"data: ", b"data:"),
        lambda data: data.replace(b"data: {", b"data: {\ndata: ") if data.startswith(b"data: {") else data,
    ],
)
def test_other_forms_that_the_standard_of_event_streams_allows(change):
    assert heard(*[(change(data), 11.0) for data in ANSWER]).text == " snowy – très froid."


def test_in_a_chat_the_first_token_counts_and_not_the_role():
    parts = [chat({"role": "assistant", "content": ""}), chat({"content": "Hi"}), chat({"content": ""}, "stop"), DONE]
    record = heard(*zip(parts, [10.1, 10.4, 10.6, 10.7], strict=True))
    assert record.ttft == pytest.approx(0.4) and record.e2e == pytest.approx(0.6) and record.text == "Hi"
    assert record.output_tokens == 2, "no usage came: the pieces are counted"


def test_one_token_has_no_time_per_further_token():
    record = heard((event("a", "length"), 10.5), (event(usage=1), 10.5), (DONE, 10.5))
    assert math.isnan(record.tpot) and list(record.itl) == [] and record.e2e == record.ttft


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([event("a"), b'data: {"choices": [{"te\n\n'], "holds what is no answer of the API"),
        ([event("a"), b'data: ["x"]\n\n'], "holds what is no answer of the API"),
        ([b'data: {"object": "list"}\n\n'], "holds what is no answer of the API"),
        ([b"data: {\xff\xfe}\n\n"], "holds what is no answer of the API"),
        ([b"<html>Please log in.</html>"], "is no stream of events: <html>Please log in.</html>"),
        ([DONE], "without a token"),
    ],
)
def test_what_is_no_stream_of_the_api_is_shown(data, said):
    with pytest.raises(StreamError, match=said) as caught:
        heard(*[(part, 11.0) for part in data])
    assert "\n" not in sentence(caught.value)
    assert not load_stream.may_pass(caught.value), "the next answer would look the same"


@pytest.mark.parametrize("parts", [[], [event("a")], [event("a"), DONE]])
def test_a_stream_that_ends_early_is_a_broken_connection(parts):
    with pytest.raises(openai.APIConnectionError) as caught:
        heard(*[(part, 11.0) for part in parts])
    assert "broke before the answer was whole" in explain(caught.value)
    assert load_stream.may_pass(caught.value)


def test_what_came_of_a_broken_answer_is_kept():
    record = Record(0)
    reader = Reader(record, 10.0)
    reader.feed(event(" half"), 10.5)
    reader.keep()
    assert record.text == " half" and record.ttft == pytest.approx(0.5)
    Reader(record, 10.0)
    assert math.isnan(record.ttft) and not len(record.itl), "a second try begins afresh"


def test_an_error_inside_a_stream_is_the_servers_own():
    with pytest.raises(openai.InternalServerError, match="EngineCore encountered") as caught:
        heard(
            (
                b'data: {"error": {"message": "EngineCore encountered an issue. See stack trace (above)", "code": 500}}\n\n',
                11,
            )
        )
    assert explain(caught.value) == (
        "The server failed: EngineCore encountered an issue. "
        "Its engine has died, and the server ends with it; its log says why."
    )
    with pytest.raises(openai.BadRequestError):
        raise reported_error({"message": "no", "code": 400})
    with pytest.raises(openai.APIError, match="what"):
        raise reported_error("what")


def test_an_answer_that_the_server_gave_up_is_a_failure():
    with pytest.raises(openai.APIError, match="gave up"):
        heard((event("a", "abort"), 11.0), (DONE, 11.0))


@pytest.mark.parametrize(
    ("status", "body", "kind", "passes"),
    [
        (400, b'{"error": {"message": "maximum context length is 2048"}}', openai.BadRequestError, False),
        (401, b'{"error": "Unauthorized"}', openai.AuthenticationError, False),
        (404, b'{"message": "no such model"}', openai.NotFoundError, False),
        (429, b"", openai.RateLimitError, True),
        (418, b"tea", openai.APIStatusError, False),
        (502, b"<html>Bad gateway</html>", openai.InternalServerError, True),
        (500, b"[1]", openai.InternalServerError, True),
    ],
)
def test_a_refusal_is_the_error_that_the_openai_client_raises(status, body, kind, passes):
    error = status_error(status, body)
    assert type(error) is kind and error.status_code == status
    assert load_stream.may_pass(error) == passes
    assert sentence(error) and "\n" not in sentence(error)


def test_a_timeout_is_not_tried_again():
    assert not load_stream.may_pass(load_stream.timed_out())


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_file_gives_back_the_run(tmp_path):
    records = [Record(i, i, i, 0.5, 1.5, array("d", [0.25, 0.75]), 5, 3, "stop", f"té{i}\n") for i in range(3)]
    records[1].ttft, records[1].error = math.nan, "It broke."
    path = tmp_path / "run.jsonl"
    path.write_text("".join(line_of(records[i]) for i in (2, 0, 1)))
    run = read(path)
    assert [record.index for record in run] == [0, 1, 2] and run.texts == ["té0\n", "té1\n", "té2\n"]
    assert run[2] == records[2] and math.isnan(run[1].ttft)
    assert (run.done, run.failed, run.seconds, run.workers) == (3, 1, 3.5, 1)
    assert repr(run) == "3 requests, 2 answered, 1 failed\n- It broke."


def test_a_last_line_that_broke_off_is_left_out_and_no_other(tmp_path):
    path = tmp_path / "run.jsonl"
    whole = line_of(Record(0))
    path.write_text(whole + whole[:30])
    assert len(read(path)) == 1
    path.write_text(whole[:30] + "\n" + whole)
    with pytest.raises(LoadError, match="Line 1 of .* is no record of a run"):
        read(path)
    with pytest.raises(LoadError, match="cannot be read: No such file"):
        read(tmp_path / "none")


def test_the_table_has_a_row_for_each_request():
    frame = Run([Record(4, ttft=0.5, e2e=1.0, output_tokens=6), Record(5, error="x")]).frame
    assert list(frame.index) == [4, 5] and frame.loc[4, "tpot"] == 0.1 and frame.loc[5, "error"] == "x"
    assert len(Run([]).frame) == 0


# --- requests ------------------------------------------------------------------------------------------------------


def test_a_request_is_a_prompt_or_what_the_api_takes():
    common = {"model": "m", "max_tokens": 5}
    route, body = body_of("Hello", common)
    assert route == "completions" and json.loads(body)["prompt"] == "Hello" and json.loads(body)["max_tokens"] == 5
    route, body = body_of({"messages": [], "max_tokens": 9, "extra_body": {"min_tokens": 2}}, common)
    body = json.loads(body)
    assert route == "chat/completions" and body["max_tokens"] == 9 and body["min_tokens"] == 2
    assert body["stream"] is True and body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    "request_", [5, {}, {"prompt": "a", "messages": []}, {"prompt": "a", "n": 2}, {"prompt": {1, 2}}, None]
)
def test_what_is_no_request_is_said(request_):
    with pytest.raises(LoadError):
        body_of(request_, {})
