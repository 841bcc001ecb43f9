"""Judges: two replies to one prompt → which one is better. Always asked in both orders, each question once.

questions.py   what a judge is asked and answers
reward.py      a reward model
function.py    a Python function
endpoint.py    an OpenAI-compatible endpoint
verdicts.py    what a language model wrote as a judge
store.py       verdicts on disk
asking.py      both orders, ties, failures, what it took
"""

from likelier.errors import JudgeError
from likelier.judge.endpoint import EndpointJudge, EndpointSettings
from likelier.judge.function import FunctionJudge
from likelier.judge.questions import Judge

KINDS = "reward:FOLDER_OR_HUB_NAME, python:FILE.py:FUNCTION or openai:MODEL"


def is_endpoint(spec: str) -> bool:
    """Whether the judge is asked over the network."""
    return spec.startswith("openai:")


def open_judge(spec: str, settings: EndpointSettings) -> Judge:
    """The judge that `spec` names, ready to be asked. Raises JudgeError saying what is missing, or for settings that it does not heed."""
    kind, _, rest = spec.partition(":")
    if (settings.base_url or settings.rubric) and kind in ("python", "reward"):
        raise JudgeError(f"--judge {spec}: only an endpoint (openai:MODEL) has a --base-url and a --rubric. Leave them out.")
    if kind == "python":
        return FunctionJudge(rest)
    if kind == "openai":
        judge = EndpointJudge(rest, settings)
        judge.check()
        return judge
    if kind == "reward" and rest:
        from likelier.judge.reward import RewardJudge

        return RewardJudge(rest)
    raise JudgeError(f"--judge: {f'`{spec}` is no judge' if spec else 'no judge was given'}. Judges are {KINDS}.")
