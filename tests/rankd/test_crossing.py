import asyncio
import threading

import pytest

from rankd.crossing import Crossing


async def test_calls_of_another_thread_come_in_order_on_the_loops_own() -> None:
    crossing, came, idents = Crossing(), [], set()
    all_came = asyncio.Event()

    def take(number: int) -> None:
        came.append(number)
        idents.add(threading.get_ident())
        if number == 99:
            all_came.set()

    await asyncio.to_thread(lambda: [crossing.call(take, number) for number in range(100)])
    await asyncio.wait_for(all_came.wait(), 30)
    assert came == list(range(100)) and idents == {threading.get_ident()}


async def test_what_a_call_raises_is_raised_where_it_is_watched_for() -> None:
    crossing = Crossing()
    watching = asyncio.create_task(crossing.watch())
    crossing.call(int, "7")
    crossing.call(int, "x")
    with pytest.raises(ValueError, match="'x'"):
        await asyncio.wait_for(watching, 30)
