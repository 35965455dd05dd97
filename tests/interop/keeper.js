'use strict';

// A keeper as it was before keeperd: it takes `redlock:<name>` with the npm package, extends it by hand at half of its time,
// works while it has it, and stops in time when it has not. It leaves the same evidence as the suite's own child
// (tests/e2e/probe.rs): one line, one write, `boot_ns keeper none host:pid/term pid event n`. `none` is its token.
//
//   node keeper.js hold REDLOCK IOREDIS own|forever    stands for the lock until SIGTERM: with a loop of its own around
//                                                      retryCount 0, as keeperd's README advises, or naively, retryCount -1
//   node keeper.js using REDLOCK IOREDIS               the child of a keeperd: works inside `using` of redlock 5
//   node keeper.js extend|release REDLOCK IOREDIS VALUE    the package's script once, on somebody's value
//
// Started in the trial's folder; everything else stands in legacy.json there.

const fs = require('node:fs');
const path = require('node:path');
const { createRequire } = require('node:module');

const setup = JSON.parse(fs.readFileSync('legacy.json', 'utf8'));
const [what, redlockVersion, ioredisAsked, extra] = process.argv.slice(2);
// ioredis 6 needs Node 20.
const ioredisVersion = ioredisAsked === '6' && parseInt(process.versions.node, 10) < 20 ? '5' : ioredisAsked;
const naive = extra === 'forever';
const from = createRequire(path.join(setup.modules, 'keeper.js'));
const Redis = from(`ioredis${ioredisVersion}`).default ?? from(`ioredis${ioredisVersion}`);
const Redlock = from(`redlock${redlockVersion}`).default ?? from(`redlock${redlockVersion}`);

const TICK_MS = 5;
const RETRY_MS = 200;
const JITTER_MS = 100;
const resource = `redlock:${setup.keeper}`;
const host = process.env.E2E_HOST ?? 'nobody.1';

/** CLOCK_BOOTTIME, which Node does not read: CLOCK_MONOTONIC and the difference that the trial measured. */
const bootNs = () => process.hrtime.bigint() + BigInt(setup.boot_minus_monotonic_ns);
const say = (text) => process.stderr.write(`${bootNs()} ${text}\n`);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

let stopping = false;
let onStop = () => {};
process.on('SIGTERM', () => {
    stopping = true;
    onStop();
});
// The suite waits for this before it tells the script to stop.
say(`up after ${Math.round(process.uptime() * 1000)} ms`);

// === The package, two versions ===

const options = naive ? { maxRetriesPerRequest: 1 } : { maxRetriesPerRequest: 1, enableOfflineQueue: false, commandTimeout: 500 };
const clients = setup.ports.map((port) => {
    const client = new Redis({ host: '127.0.0.1', port, ...options });
    client.on('error', () => {});
    return client;
});
const redlock = new Redlock(clients, {
    retryCount: naive ? -1 : 0,
    retryDelay: RETRY_MS,
    retryJitter: JITTER_MS,
});
for (const event of ['error', 'clientError']) redlock.on(event, () => {});

const acquire = () =>
    redlockVersion === '4' ? redlock.lock(resource, setup.ttl_ms) : redlock.acquire([resource], setup.ttl_ms);
const release = (lock) => (redlockVersion === '4' ? lock.unlock() : lock.release());

/** Without an offline queue a client refuses everything until it is connected; a dead node is not waited for long. */
async function connected() {
    if (naive) return;
    const until = Date.now() + 1000;
    while (clients.some((c) => c.status !== 'ready') && Date.now() < until) await sleep(5);
    say(`clients: ${clients.map((c) => c.status).join(', ')}`);
}

/** Whatever is still being sent goes out first. */
const quit = () => Promise.race([Promise.allSettled(clients.map((c) => c.quit())), sleep(200)]);

// === Evidence ===

class Pen {
    constructor(keeper, token, instance) {
        this.file = fs.openSync(setup.log, 'a');
        this.words = [keeper, token, instance, process.pid].join(' ');
        this.n = 0;
    }

    /** `at` was read before the writer made sure that it may. */
    write(event, at = bootNs()) {
        fs.writeSync(this.file, `${at} ${this.words} ${event} ${this.n++}\n`);
    }

    close() {
        fs.closeSync(this.file);
    }
}

// === The keeper ===

let terms = 0;

async function stand() {
    await connected();
    while (!stopping) {
        // A waiter with retryCount -1 cannot be told to stop waiting.
        onStop = naive ? () => process.exit(0) : () => {};
        const lock = await acquire().catch(() => null);
        if (lock) await hold(lock);
        else if (!stopping) await pauseUnlessStopped(RETRY_MS + (Math.random() * 2 - 1) * JITTER_MS);
    }
    await quit();
}

function pauseUnlessStopped(ms) {
    return Promise.race([sleep(ms), new Promise((stopped) => (onStop = stopped))]);
}

async function hold(lock) {
    let expiration = lock.expiration;
    const at = bootNs();
    // redlock 5.0.0-beta.2 hands out locks that have expired; nobody who stops in time may begin with one.
    if (stopping || Date.now() >= expiration) return release(lock).catch(() => {});
    const pen = new Pen(setup.record_as, 'none', `${host}:${process.pid}/${++terms}`);
    pen.write('start', at);
    say(`has ${resource}, value ${lock.value}`);
    const why = await new Promise((end) => {
        const ticking = setInterval(() => {
            const now = bootNs();
            if (Date.now() >= expiration) done('expired');
            else pen.write('tick', now);
        }, TICK_MS);
        const extending = setInterval(() => {
            lock.extend(setup.ttl_ms).then(
                (extended) => {
                    lock = extended;
                    expiration = extended.expiration;
                },
                (error) => done(`not extended: ${error.message}`),
            );
        }, setup.ttl_ms / 2);
        const done = (reason) => {
            clearInterval(ticking);
            clearInterval(extending);
            end(reason);
        };
        onStop = () => done('stopped');
        if (stopping) done('stopped');
    });
    const last = bootNs();
    if (why === 'stopped' && Date.now() < expiration) pen.write('stop', last);
    pen.close();
    say(`gives ${resource} up: ${why}`);
    await release(lock).catch((error) => say(`release: ${error.message}`));
}

// === A script that locks for itself, under keeperd ===

async function underKeeperd() {
    const child = new Pen(process.env.KEEPERD_KEEPER, process.env.KEEPERD_FENCING_TOKEN, `${host}:${process.pid}`);
    child.write('start');
    const ticking = setInterval(() => child.write('tick'), TICK_MS);
    await connected();
    const patient = new Redlock(clients, { retryCount: 10, retryDelay: RETRY_MS, retryJitter: JITTER_MS });
    while (!stopping) {
        try {
            await patient.using([resource], setup.ttl_ms, work);
        } catch (error) {
            say(`using: ${error.message}`);
        }
    }
    await quit();
    clearInterval(ticking);
    child.write('stop');
}

async function work(signal) {
    const pen = new Pen(setup.record_as, 'none', `${host}:${process.pid}/${++terms}`);
    pen.write('start');
    while (!stopping && !signal.aborted) {
        await pauseUnlessStopped(TICK_MS);
        if (!signal.aborted) pen.write(stopping ? 'stop' : 'tick');
    }
    pen.close();
}

// === One script, once ===

async function once() {
    await connected();
    const until = Date.now() + setup.ttl_ms;
    const lock =
        redlockVersion === '4'
            ? new Redlock.Lock(redlock, [resource], extra, until)
            : new (from('redlock5').Lock)(redlock, [resource], extra, [], until);
    const done = what === 'extend' ? lock.extend(setup.ttl_ms) : release(lock);
    fs.writeSync(1, await done.then(() => 'yes', (error) => `no: ${error.message}`));
    await quit();
}

const roles = { hold: stand, using: underKeeperd, extend: once, release: once };
roles[what]().then(
    () => process.exit(0),
    (error) => {
        say(error.stack);
        process.exit(70);
    },
);
