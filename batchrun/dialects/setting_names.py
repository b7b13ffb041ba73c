"""Names of request fields in other APIs than the Responses API.

A column of such a name is probably meant as a setting. Sources: the APIs' references (OpenAI chat
and legacy completions, Anthropic, Gemini, Cohere, Mistral), and the parameters that vLLM, SGLang,
TGI, llama.cpp, Ollama and OpenRouter add.
"""

from collections.abc import Iterator
from difflib import get_close_matches

from batchrun.dialects.responses import REQUEST_FIELDS, TRANSPORT_FIELDS

# A field of another API to the field, or the part of one, that says the same here.
SAME = {
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "max_new_tokens": "max_output_tokens",
    "max_tokens_to_sample": "max_output_tokens",
    "maxOutputTokens": "max_output_tokens",
    "maxTokens": "max_output_tokens",
    "num_predict": "max_output_tokens",
    "n_predict": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    "response_format": "text.format",
    "output_format": "text.format",
    "functions": "tools",
    "function_call": "tool_choice",
    "messages": "input",
    "contents": "input",
    "system": "instructions",
    "system_prompt": "instructions",
    "system_message": "instructions",
    "systemInstruction": "instructions",
    "system_instruction": "instructions",
    "preamble": "instructions",
    "instruction": "instructions",
    "topP": "top_p",
    "temp": "temperature",
}
OTHER_SETTINGS = frozenset(
    (
        *SAME,
        # chat and legacy completions
        *("audio", "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "modalities"),
        *("n", "prediction", "presence_penalty", "seed", "stop", "suffix", "web_search_options"),
        # Anthropic
        *("betas", "container", "context_management", "inference_geo", "mcp_servers"),
        *("output_config", "stop_sequences", "thinking", "top_k"),
        # Gemini and Bedrock
        *("cachedContent", "cached_content", "candidateCount", "candidate_count"),
        *("frequencyPenalty", "generationConfig", "generation_config", "presencePenalty"),
        *("responseMimeType", "responseSchema", "response_mime_type", "response_schema"),
        *("safetySettings", "safety_settings", "stopSequences", "thinkingConfig"),
        *("thinking_config", "toolConfig", "tool_config", "topK", "inferenceConfig"),
        *("additionalModelRequestFields", "guardrailConfig"),
        # Mistral and Cohere
        *("random_seed", "safe_prompt", "prompt_mode", "connectors", "citation_options"),
        *("citation_quality", "chat_history", "documents", "force_single_step", "safety_mode"),
        *("search_queries_only", "p", "k", "raw_prompting"),
        # vLLM, SGLang, TGI, llama.cpp, Ollama
        *("add_generation_prompt", "allowed_token_ids", "bad_words", "chat_template"),
        *("chat_template_kwargs", "decoder_input_details", "do_sample", "ebnf"),
        *("early_stopping", "extra_body", "grammar", "guided_choice", "guided_decoding_backend"),
        *("guided_grammar", "guided_json", "guided_regex", "ignore_eos", "include_reasoning"),
        *("include_stop_str_in_output", "json_schema", "keep_alive", "length_penalty", "lora_path"),
        *("min_new_tokens", "min_p", "min_tokens", "mirostat", "mirostat_eta", "mirostat_tau"),
        *("no_stop_trim", "num_beams", "num_ctx", "num_keep", "options", "priority"),
        *("prompt_logprobs", "regex", "repeat_last_n", "repeat_penalty", "repetition_penalty"),
        *("return_full_text", "skip_special_tokens", "spaces_between_special_tokens"),
        *("stop_token_ids", "structured_outputs", "tfs_z", "think", "top_a", "top_n_tokens"),
        *("truncate", "truncate_prompt_tokens", "typical_p", "use_beam_search", "watermark"),
        *("xtc_probability", "xtc_threshold", "dry_multiplier", "cache_prompt"),
        # OpenRouter and gateways
        *("fallbacks", "models", "plugins", "provider", "reasoning_format", "route", "transforms"),
        *("thinking_budget", "enable_thinking", "extra_headers", "extra_query"),
    )
)
SETTINGS = frozenset(REQUEST_FIELDS) | OTHER_SETTINGS


def unknown_fields(names: Iterator[str] | list[str]) -> list[str]:
    """In words, for each field of a request that the Responses API does not have."""
    return [_unknown(name) for name in names if name not in REQUEST_FIELDS]


def _unknown(name: str) -> str:
    said = f"request.{name} is not a known field of the Responses API; it is sent as it is"
    if name in SAME:
        return f"{said}; the Responses API says it with `{SAME[name]}`"
    if name in OTHER_SETTINGS:
        return f"{said}: other APIs have it"
    known = [field for field in REQUEST_FIELDS if field not in TRANSPORT_FIELDS]
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"{said}; did you mean `{near[0]}`?" if near else said
