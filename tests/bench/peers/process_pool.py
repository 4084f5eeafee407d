#!/usr/bin/env python3
# SPDX-License-Identifier: BSL-1.0
"""The benchmark's functions through Python's ProcessPoolExecutor with one worker: microseconds per call."""
import time
from concurrent.futures import ProcessPoolExecutor


def add_one(x):
    return x + 1


def length(data):
    return len(data)


def microseconds(calls, work):
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) / calls * 1e6


def main():
    with ProcessPoolExecutor(1) as pool:
        pool.submit(add_one, 1).result()

        def one_by_one():
            for _ in range(2000):
                assert pool.submit(add_one, 1).result() == 2

        def many_at_once():
            for _ in range(20):
                futures = [pool.submit(add_one, 1) for _ in range(256)]
                assert all(future.result() == 2 for future in futures)

        data = bytes(1 << 20)

        def large():
            for _ in range(100):
                assert pool.submit(length, data).result() == len(data)

        print(f"one in flight: {microseconds(2000, one_by_one):.1f} µs")
        print(f"256 in flight: {microseconds(20 * 256, many_at_once):.1f} µs")
        print(f"1 MiB in, its length back: {microseconds(100, large):.0f} µs")


if __name__ == "__main__":
    main()
