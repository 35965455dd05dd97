// A keeper with a child process of its own, which goes on when the parent is gone. It hangs when it finds the file LOG.hang: an
// endless loop, as a handler that never returns to the event loop.
'use strict';
const fs = require('fs');
const { spawn } = require('child_process');
const [log, role] = process.argv.slice(2);

function note(word) {
  fs.appendFileSync(log, `${process.pid} ${word}\n`);
}
function say(word) {
  note(word);
  console.log(word);
}

if (role === 'worker') {
  process.on('SIGTERM', () => {});
  setInterval(() => note('work'), 50);
} else {
  say('start');
  const worker = spawn(process.execPath, [__filename, log, 'worker'], { detached: true, stdio: 'ignore' });
  process.on('SIGTERM', () => {
    worker.kill('SIGKILL');
    say('stop');
    process.exit(0);
  });
  setInterval(() => {
    if (fs.existsSync(`${log}.hang`)) {
      fs.unlinkSync(`${log}.hang`);
      say('hangs');
      for (;;);
    }
    say('tick');
  }, 50);
}
