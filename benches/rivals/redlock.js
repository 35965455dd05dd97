'use strict';

// The npm package redlock as a rival. `node redlock.js MODULES REDLOCK PORT…`: says "ready", then answers each line of stdin,
// `N BUDGET_MS SERVING`, with one line of JSON: what N cycles of acquire, extend and release took, in ns. It stops early when the
// budget is over; an operation that is still under way then is `hung`. `SERVING` names the ports that answer at all, as "1,2,3".
//
// `poll COUNT MS PREFIX`: stands for the locks PREFIX0 to PREFIX(COUNT - 1), which somebody else holds, every MS, until stdin ends.

const path = require('node:path');
const readline = require('node:readline');
const { createRequire } = require('node:module');

const [modules, version, ...ports] = process.argv.slice(2);
const from = createRequire(path.join(modules, 'redlock.js'));
const Redis = from('ioredis5').default ?? from('ioredis5');
const Redlock = from(`redlock${version}`).default ?? from(`redlock${version}`);

const TTL_MS = 30_000;
// As keeperd's README advises: without these a frozen node holds up every operation for as long as it is frozen.
const options = { maxRetriesPerRequest: 1, enableOfflineQueue: false, commandTimeout: 500 };
const clients = ports.map((port) => {
    const client = new Redis({ host: '127.0.0.1', port: Number(port), ...options });
    client.on('error', () => {});
    return client;
});
const redlock = new Redlock(clients, { retryCount: 0 });
for (const event of ['error', 'clientError']) redlock.on(event, () => {});

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const acquire = (name) => (version === '4' ? redlock.lock(name, TTL_MS) : redlock.acquire([name], TTL_MS));
const release = (lock) => (version === '4' ? lock.unlock() : lock.release());

/** Replies come in order: when these are here, those of the operation before are, too. */
const settle = (serving) =>
    Promise.allSettled(clients.filter((_, i) => serving.includes(ports[i])).map((client) => client.ping()));

async function cycles(n, budgetMs, serving) {
    const taken = { acquire: [], extend: [], release: [], failed: 0, hung: false };
    const end = performance.now() + budgetMs;
    const timed = async (name, operation) => {
        const began = process.hrtime.bigint();
        const outcome = await Promise.race([
            operation().then((value) => ({ value }), (error) => ({ error })),
            sleep(Math.max(0, end - performance.now())).then(() => null),
        ]);
        taken[name].push(Number(process.hrtime.bigint() - began));
        if (outcome === null) taken.hung = true;
        if (outcome?.error) taken.failed += 1;
        await settle(serving);
        return outcome?.value;
    };
    for (let i = 0; i < n && performance.now() < end; i += 1) {
        let lock = await timed('acquire', () => acquire(`bench:npm${version}`));
        if (!lock) break;
        lock = (await timed('extend', () => lock.extend(TTL_MS))) ?? lock;
        await timed('release', () => release(lock));
        if (taken.hung) break;
    }
    return taken;
}

async function poll(count, everyMs, prefix) {
    const one = async (i) => {
        await sleep(Math.random() * everyMs);
        for (;;) {
            const began = performance.now();
            await acquire(`${prefix}${i}`).then(release, () => {});
            await sleep(Math.max(0, everyMs - (performance.now() - began)));
        }
    };
    for (let i = 0; i < count; i += 1) void one(i);
}

(async () => {
    while (clients.some((client) => client.status !== 'ready')) await sleep(5);
    console.log('ready');
    for await (const line of readline.createInterface({ input: process.stdin })) {
        const words = line.split(' ');
        if (words[0] === 'poll') {
            await poll(Number(words[1]), Number(words[2]), words[3]);
            console.log('polling');
        } else {
            console.log(JSON.stringify(await cycles(Number(words[0]), Number(words[1]), (words[2] ?? '').split(','))));
        }
    }
    process.exit(0);
})();
