"""Chat templates: what transformers makes of them, inside bounds it does not have."""

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from adex_proto.errors import TemplateError
from adex_scheduler.text.chat import PROMPT_CHARACTERS_MAX, ChatTemplate

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}\n"
        "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "headers": (
        "{{- bos_token }}\n"
        "{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system_message = messages[0]['content'] | trim %}\n"
        "    {%- set messages = messages[1:] %}\n"
        "{%- else %}{%- set system_message = '' %}{%- endif %}\n"
        "{{- '[system] ' ~ system_message }}\n"
        "{%- for message in messages %}\n"
        "    {%- if loop.index0 > 4 %}{% break %}{% endif %}\n"
        "    {{- '[' + message['role'] + '] ' + message['content'] | trim + eos_token }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{- '[assistant] ' }}{%- endif %}\n"
    ),
    "json": "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=2) }}{% endfor %}",
    "trained": (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    ),
    "namespace": (
        "{% set ns = namespace(last='') %}{% for m in messages %}{% set ns.last = m.role %}"
        "{{ m.content.split(' ')[0] }};{% endfor %}{{ ns.last }}"
    ),
}
CONVERSATIONS = [
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": '  Be "brief" & <kind>.\n'},
        {"role": "user", "content": "Zürich 你好 🙂\n\n  indented"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": ""},
    ],
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="module")
def theirs() -> PreTrainedTokenizerFast:
    fast = FastTokenizer(models.WordLevel({"a": 0, "<s>": 1, "</s>": 2}, "a"))
    return PreTrainedTokenizerFast(tokenizer_object=fast, **SPECIAL)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_what_it_gives_in_transformers(
    theirs: PreTrainedTokenizerFast,
    name: str,
    messages: list[dict[str, str]],
    add_generation_prompt: bool,
) -> None:
    expected = theirs.apply_chat_template(
        messages,
        chat_template=TEMPLATES[name],
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
    )
    ours = ChatTemplate(TEMPLATES[name]).render(
        messages, add_generation_prompt=add_generation_prompt, tools=None, values=SPECIAL
    )
    assert ours == expected


def render(source: str) -> str:
    return ChatTemplate(source).render(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tools=None, values={}
    )


def test_a_refusal_gives_the_templates_own_reason() -> None:
    with pytest.raises(TemplateError, match="users speak first"):
        render("{{ raise_exception('users speak first') }}")


def test_a_fault_of_the_template_is_a_template_error_too() -> None:
    for source in ("{{ messages[9]['role'] + 1 }}", "{{ 1 / 0 }}", "{{ none.x.y }}"):
        with pytest.raises(TemplateError):
            render(source)


def test_a_template_that_cannot_be_read_fails_when_the_model_is_loaded() -> None:
    with pytest.raises(TemplateError, match="cannot be read"):
        ChatTemplate("{% if %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].system('true') }}",
    ],
)
def test_a_template_reaches_nothing_outside_itself(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 1000000000 }}",
        "{{ 10 ** 1000000 }}",
        "{% for i in range(100000000) %}x{% endfor %}",
        "{% for i in range(90000) %}" + "x" * 100 + "{% endfor %}",
        "{{ 'x' * 1000000 * 1000 }}",
    ],
)
def test_a_template_that_runs_away_is_stopped(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source)
    assert PROMPT_CHARACTERS_MAX < 90000 * 100


def test_a_template_that_takes_too_long_is_stopped() -> None:
    ticks = iter(range(0, 10_000, 5))
    with pytest.raises(TemplateError, match="longer than 10 seconds"):
        ChatTemplate("{% for i in range(99) %}{{ i }}{% endfor %}").render(
            [],
            add_generation_prompt=True,
            tools=None,
            values={},
            clock=lambda: float(next(ticks)),
        )


def test_the_date_a_template_asks_for_is_todays() -> None:
    assert render("{{ strftime_now('%Y') }}").isdigit()
