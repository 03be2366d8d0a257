// BullMQ on Node: the words of tests/bench/program.py and the job of tests/bench/handler.py, on one page.

import fs from 'node:fs'
import { createRequire } from 'node:module'

// Installed elsewhere than beside this file.
const { Queue, Worker } = createRequire(process.env.BENCH_NODE + '/')('bullmq')

const { hostname: host, port } = new URL(process.env.BENCH_REDIS_URL)
const connection = { host, port: Number(port), maxRetriesPerRequest: null }
const options = { removeOnComplete: true }
const now = () => Number(process.hrtime.bigint()) / 1e9
const pause = seconds => new Promise(done => setTimeout(done, 1000 * seconds))
const payload = number => ({
  organizationId: 'org1', integrationId: `page-${String(number).padStart(6, '0')}`, date: '2026-01-01'
})
const payloads = count => Array.from({ length: Number(count) }, (_, number) => payload(number))

async function one (queue, count) {
  const all = payloads(count)
  const begun = now()
  for (const each of all) await queue.add('nothing', each, options)
  return now() - begun
}

async function many (queue, count) {
  const all = payloads(count).map(data => ({ name: 'nothing', data, opts: options }))
  const begun = now()
  for (let begin = 0; begin < all.length; begin += 1000) await queue.addBulk(all.slice(begin, begin + 1000))
  return [now() - begun, true]
}

async function latency (queue, count, limit) {
  const pipe = fs.openSync(process.env.BENCH_PIPE, 'r+')
  const line = Buffer.alloc(200)
  const waits = []
  const until = now() + Number(limit)
  for (let number = 0; number < Number(count) && now() < until; number++) {
    const begun = now()
    await queue.add('nothing', payload(number), options)
    waits.push(Number(line.toString('latin1', 0, fs.readSync(pipe, line)).split(' ')[1]) - begun)
    await pause(0.02)
  }
  return waits
}

function work (concurrency) {
  const told = process.env.BENCH_TELL
  const tell = new Set(told ? told.split(',').map(Number) : [])
  const pipe = told ? fs.openSync(process.env.BENCH_PIPE, 'r+') : -1
  const hold = Number(process.env.BENCH_HOLD || 0)
  let count = 0
  const nothing = async () => {
    count++
    if (tell.has(count) || tell.has(0)) fs.writeSync(pipe, `${count} ${now()} ${process.pid}\n`)
    if (hold) await pause(hold)
  }
  new Worker('bench', nothing, { connection, concurrency: Number(concurrency) })
}

const [verb, ...rest] = process.argv.slice(2)
if (verb === 'work') {
  work(...rest)
} else {
  const queue = new Queue('bench', { connection })
  await queue.waitUntilReady()
  console.log(JSON.stringify(await { one, many, latency }[verb](queue, ...rest)))
  await queue.close()
}
