// SPDX-License-Identifier: BSL-1.0
// The benchmark's functions through Node's workerpool (npm install workerpool) with one worker process: microseconds
// per call.
import workerpool from "workerpool";

function addOne(x) {
  return x + 1;
}

function length(data) {
  return data.length;
}

async function microseconds(calls, work) {
  const begin = process.hrtime.bigint();
  await work();
  return Number(process.hrtime.bigint() - begin) / 1e3 / calls;
}

const pool = workerpool.pool({ minWorkers: 1, maxWorkers: 1, workerType: "process" });
await pool.exec(addOne, [1]);
const oneByOne = await microseconds(2000, async () => {
  for (let i = 0; i < 2000; ++i) {
    if ((await pool.exec(addOne, [1])) !== 2) throw new Error("a result is wrong");
  }
});
const manyAtOnce = await microseconds(20 * 256, async () => {
  for (let i = 0; i < 20; ++i) {
    const results = await Promise.all(Array.from({ length: 256 }, () => pool.exec(addOne, [1])));
    if (results.some((result) => result !== 2)) throw new Error("a result is wrong");
  }
});
// Between processes it goes as text.
const data = "x".repeat(1 << 20);
const large = await microseconds(100, async () => {
  for (let i = 0; i < 100; ++i) {
    if ((await pool.exec(length, [data])) !== data.length) throw new Error("a result is wrong");
  }
});
console.log(`one in flight: ${oneByOne.toFixed(1)} µs`);
console.log(`256 in flight: ${manyAtOnce.toFixed(1)} µs`);
console.log(`1 MiB in, its length back: ${large.toFixed(0)} µs`);
await pool.terminate();
