"""vLLM's RequestOutput as the body of the OpenAI API's response, with the fields that vLLM's server sends."""

import time
import uuid
from typing import Any

SMALLEST = -9999.0  # JSON has no minus infinity; the server writes this


def body_of(output: Any, asked: Any, model: str) -> dict[str, Any]:
    """The response to a ChatCompletionRequest or CompletionRequest (vLLM's classes) that `output` answers."""
    chat = hasattr(asked, "messages")
    prompt, written = len(output.prompt_token_ids), sum(len(choice.token_ids) for choice in output.outputs)
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex[:16]}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [(_chat_choice if chat else _choice)(choice, asked) for choice in output.outputs],
        "usage": {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written},
    }


def _chat_choice(choice: Any, asked: Any) -> dict[str, Any]:
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text},
        "logprobs": {"content": _chat_logprobs(choice, asked.top_logprobs or 0)} if asked.logprobs else None,
        "finish_reason": choice.finish_reason or "stop",
        "stop_reason": choice.stop_reason,
    }


def _choice(choice: Any, asked: Any) -> dict[str, Any]:
    return {
        "index": choice.index,
        "text": choice.text,
        "logprobs": _logprobs(choice, asked.logprobs) if asked.logprobs is not None else None,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }


def _chat_logprobs(choice: Any, top: int) -> list[dict[str, Any]]:
    """For each token: itself, and the `top` most probable at its place (-1: all that vLLM gave)."""
    content = []
    for token, found in zip(choice.token_ids, choice.logprobs, strict=True):
        others = list(found.values())
        content.append(
            _entry(found[token]) | {"top_logprobs": [_entry(one) for one in others[: None if top < 0 else top]]}
        )
    return content


def _entry(found: Any) -> dict[str, Any]:
    token = found.decoded_token
    return {"token": token, "logprob": max(found.logprob, SMALLEST), "bytes": list(token.encode(errors="replace"))}


def _logprobs(choice: Any, top: int) -> dict[str, list[Any]]:
    """The completions' older form: parallel lists. The chosen token comes on top of the `top` most probable."""
    chosen = [found[token] for token, found in zip(choice.token_ids, choice.logprobs, strict=True)]
    tokens, offsets = [one.decoded_token for one in chosen], [0]
    for token in tokens[:-1]:
        offsets.append(offsets[-1] + len(token))
    tops = [list(found.values())[: None if top < 0 else top + 1] for found in choice.logprobs]
    return {
        "text_offset": offsets[: len(tokens)],
        "token_logprobs": [max(one.logprob, SMALLEST) for one in chosen],
        "tokens": tokens,
        "top_logprobs": [{one.decoded_token: max(one.logprob, SMALLEST) for one in found} for found in tops],
    }
