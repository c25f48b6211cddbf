from __future__ import annotations

from roseinfer.core.messages import AbortRequest, AddRequest, TokenOutput
from roseinfer.engine.live_requests import DEATHS_FORGOTTEN_SECONDS, LONG_TRIAL_TOKENS, LiveRequests
from tests.fake_engine import make_request


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def live(*names: str, clock: Clock | None = None) -> LiveRequests:
    """With these requests at the engine."""
    requests = LiveRequests(clock or Clock())
    for name in names:
        requests.add(make_request(name, [1, 2]))
    assert sent(requests) == list(names)
    return requests


def sent(requests: LiveRequests) -> list[str]:
    return [each.request_id for each in requests.next_commands() if isinstance(each, AddRequest)]


def token(name: str, *token_ids: int) -> TokenOutput:
    return TokenOutput(name, list(token_ids or (7,)))


def end(name: str) -> TokenOutput:
    return TokenOutput(name, [9], finish_reason="length")


def aborted(name: str) -> TokenOutput:
    return TokenOutput(name, [], finish_reason="abort")


def suspects(*names: str) -> LiveRequests:
    """They have seen two deaths; the first one runs alone."""
    requests = live(*names)
    requests.on_death("it died")
    assert sent(requests) == list(names)
    requests.on_death("it died")
    assert sent(requests) == [names[0]]
    return requests


def test_a_request_is_sent_once() -> None:
    requests = live("a", "b")
    assert requests.next_commands() == []
    requests.add(make_request("c", [3]))
    assert sent(requests) == ["c"]


def test_after_a_death_a_request_goes_on_behind_what_was_accepted() -> None:
    requests = LiveRequests()
    requests.add(make_request("a", [1, 2], output_ids=[3], num_prompt_logprobs=2))
    requests.next_commands()
    requests.accept([token("a", 4, 5), token("a", 6)])
    assert requests.on_death("it died") == []
    [again] = requests.next_commands()
    assert isinstance(again, AddRequest)
    assert (again.prompt_ids, again.output_ids, again.num_prompt_logprobs) == ([1, 2], [3, 4, 5, 6], -1)


def test_a_request_without_a_token_is_sent_again_as_it_was() -> None:
    requests = LiveRequests()
    request = make_request("a", [1, 2], num_prompt_logprobs=2)
    requests.add(request)
    requests.next_commands()
    requests.on_death("it died")
    assert requests.next_commands() == [request]


def test_what_is_finished_is_not_sent_again() -> None:
    requests = live("a", "b")
    assert requests.accept([end("a")]) == [end("a")]
    requests.on_death("it died")
    assert sent(requests) == ["b"]


def test_outputs_for_nobody_are_dropped() -> None:
    assert live("a").accept([token("b"), token("a")]) == [token("a")]


def test_an_aborted_request_ends_here_if_no_engine_has_it() -> None:
    requests = live("a")
    assert requests.abort("a") is None  # the engine says so
    requests.add(make_request("b", [1]))
    assert requests.abort("b") == TokenOutput("b", [], finish_reason="abort")
    assert requests.abort("b") is None
    assert requests.on_death("it died") == [TokenOutput("a", [], finish_reason="abort")]
    assert len(requests) == 0


def test_two_deaths_make_suspects_that_run_alone_until_they_have_brought_a_token() -> None:
    requests = live("a", "b")
    requests.on_death("it died")
    assert sent(requests) == ["a", "b"]
    requests.add(make_request("c", [1]))
    assert sent(requests) == ["c"]
    requests.on_death("it died")  # the second one that a and b have seen
    requests.add(make_request("d", [1]))
    assert sent(requests) == ["a"]
    assert requests.has_suspect_alone
    assert requests.next_commands() == []
    requests.accept([token("a")])
    assert requests.next_commands() == [AbortRequest("a")]  # taken back
    assert requests.next_commands() == []  # until the engine has let it go
    assert requests.accept([token("a", 8), aborted("a")]) == [token("a", 8)]
    assert sent(requests) == ["b"]
    requests.accept([token("b")])
    commands = requests.next_commands()
    assert [each.request_id for each in commands] == ["a", "c", "d"]
    assert isinstance(commands[0], AddRequest)
    assert commands[0].output_ids == [7, 8]  # what came while it was taken back counts
    assert not requests.has_suspect_alone


def test_who_kills_the_engine_while_it_is_taken_back_ends_and_no_other() -> None:
    requests = suspects("a", "b")
    requests.accept([token("a")])
    assert requests.next_commands() == [AbortRequest("a")]
    assert requests.has_suspect_alone
    [failed] = requests.on_death("SIGSEGV")
    assert failed.request_id == "a"
    assert sent(requests) == ["b"]


def test_an_abort_is_not_taken_for_the_answer_to_taking_back() -> None:
    requests = suspects("a", "b")
    assert requests.abort("a") is None  # the engine is told
    requests.accept([token("a")])
    assert requests.next_commands() == [AbortRequest("a")]
    assert requests.accept([aborted("a")]) == [aborted("a")]
    assert sent(requests) == ["b"]
    assert len(requests) == 1


def test_a_request_that_finishes_while_it_is_taken_back_is_finished() -> None:
    requests = suspects("a", "b")
    requests.accept([token("a")])
    requests.next_commands()
    assert requests.accept([end("a")]) == [end("a")]
    assert sent(requests) == ["b"]


def test_a_suspect_that_finishes_makes_room() -> None:
    requests = live("a", "b")
    requests.on_death("it died")
    sent(requests)
    requests.on_death("it died")
    assert sent(requests) == ["a"]
    requests.accept([end("a")])
    assert sent(requests) == ["b"]
    assert len(requests) == 1


def test_who_kills_the_engine_alone_ends_and_the_others_go_on() -> None:
    requests = live("a", "b", "c")
    for _ in range(2):
        requests.on_death("it died")
        sent(requests)
    requests.accept([token("a")])
    assert requests.next_commands() == [AbortRequest("a")]
    requests.accept([aborted("a")])
    assert sent(requests) == ["b"]
    [failed] = requests.on_death("SIGSEGV")
    assert (failed.request_id, failed.finish_reason) == ("b", "error")
    assert failed.error == "the engine died of this request (SIGSEGV)"
    assert sent(requests) == ["c"]
    requests.accept([token("c")])
    assert sent(requests) == ["a"]


def test_who_was_there_a_third_time_runs_alone_for_longer() -> None:
    requests = live("a")
    for _ in range(2):
        requests.on_death("it died")
        assert sent(requests) == ["a"]
    requests.accept([token("a")])
    assert not requests.has_suspect_alone
    assert requests.on_death("it died") == []  # it was in company, as far as anybody knows
    requests.add(make_request("b", [1]))
    assert sent(requests) == ["a"]
    requests.accept([token("a", *range(LONG_TRIAL_TOKENS - 1))])
    assert requests.has_suspect_alone
    requests.accept([token("a")])
    assert sent(requests) == ["b"]


def test_deaths_long_ago_make_nobody_a_suspect() -> None:
    clock = Clock()
    requests = live("a", "b", clock=clock)
    for _ in range(4):
        requests.on_death("it died")
        assert sent(requests) == ["a", "b"]
        clock.seconds += DEATHS_FORGOTTEN_SECONDS + 1


def test_times_of_a_resumed_request_span_its_engines() -> None:
    clock = Clock()
    requests = live("a", "b", clock=clock)
    requests.accept([token("a"), token("b")])
    clock.seconds += 3
    requests.accept([TokenOutput("b", [1], finish_reason="stop", decode_seconds=2.5)])
    requests.on_death("it died")
    sent(requests)
    clock.seconds += 4
    [last] = requests.accept([TokenOutput("a", [1], finish_reason="stop", decode_seconds=0.5)])
    assert last.decode_seconds == 7


def test_an_aborted_suspect_makes_room() -> None:
    requests = live("a", "b")
    requests.on_death("it died")
    sent(requests)
    requests.on_death("it died")
    assert sent(requests) == ["a"]
    assert requests.abort("a") is None
    requests.accept([TokenOutput("a", [], finish_reason="abort")])
    assert sent(requests) == ["b"]


def test_a_request_that_cannot_be_sent_ends() -> None:
    requests = live("a", "b")
    [failed] = requests.fail("a", "too large")
    assert (failed.request_id, failed.error) == ("a", "too large")
    assert requests.fail("a", "too large") == []
    assert len(requests) == 1


def test_what_a_request_had_computed_itself_did_not_come_from_the_cache() -> None:
    requests = live("a", "b")
    [output] = requests.accept([TokenOutput("a", [7], num_cached_tokens=16)])
    assert output.num_cached_tokens == 16
    requests.on_death("it died")
    assert sent(requests) == ["a", "b"]
    [output] = requests.accept([TokenOutput("b", [8], num_cached_tokens=48)])
    assert output.num_cached_tokens == 0
