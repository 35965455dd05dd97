// The witness in Node: see hosts.py. hrtime is CLOCK_MONOTONIC, which is CLOCK_BOOTTIME on a machine that was never suspended.
const fs = require('fs');
const log = fs.openSync(`/fleet/records/${process.env.KEEPERD_KEEPER}.${require('os').hostname()}`, 'a');
const say = (event) =>
  fs.writeSync(log, `${process.hrtime.bigint()} ${process.env.KEEPERD_FENCING_TOKEN} ${process.pid} ${event}\n`);
say('start');
process.on('SIGINT', () => { say('SIGINT'); process.exit(0); });
process.on('SIGTERM', () => say('SIGTERM'));
process.on('SIGHUP', () => say('SIGHUP'));
setInterval(() => say('tick'), 20);
