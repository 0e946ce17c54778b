// Servers and their three clients in one process, through TCP, a UNIX socket and HTTP with a connection
// that is kept alive; each request is made by a timer, a digest made by the thread pool goes along with
// each, and there is a loop that is hot enough to be compiled.
'use strict';
const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const net = require('net');
const home = process.argv[2];
const out = fs.createWriteStream(home + '/out');

function mix(value) {
  for (let turn = 0; turn < 3000; turn++) value = (Math.imul(value, 1103515245) + 12345) >>> 0;
  return value;
}

function digest(answer, then) {
  crypto.pbkdf2(answer, 'salt', 10, 8, 'sha256', (error, made) => {
    if (error) throw error;
    then(`${answer} ${made.toString('hex')}\n`);
  });
}

// Each connection has a chain of its own, which is nowhere else.
const serve = (socket) => {
  let value = 0;
  let count = 0;
  let pending = '';
  socket.on('data', (data) => {
    pending += data;
    for (let end; (end = pending.indexOf('\n')) >= 0; pending = pending.slice(end + 1)) {
      value = mix(value + Number(pending.slice(0, end)));
      count += 1;
      digest(`${count} ${value}`, (answer) => socket.write(answer));
    }
  });
};

let open = 0;
function ended() {
  if ((open -= 1) === 0) out.end('done\n');
}

function client(number, where, server) {
  open += 1;
  const socket = net.connect(where);
  let finish = false;
  const timer = setInterval(() => {
    finish = finish || fs.existsSync(home + '/finish');
    if (!finish) return;
    clearInterval(timer);
  }, 100);
  const ask = () => socket.write(`${number}\n`);
  socket.on('connect', ask);
  let pending = '';
  socket.on('data', (data) => {
    pending += data;
    if (!pending.endsWith('\n')) return;
    out.write(`${number} ${pending}`);
    pending = '';
    if (!finish) return void setTimeout(ask, 40 * number);
    socket.end();
    server.close();
    ended();
  });
}

// A connection that is made anew begins a chain anew.
const web = http.createServer((request, response) => {
  const state = request.socket.state ||= { value: 0, count: 0 };
  state.value = mix(state.value + Number(request.url.slice(1)));
  state.count += 1;
  digest(`${state.count} ${state.value}`, (answer) => response.end(answer));
});

function browser(number, port) {
  open += 1;
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const ask = () => http.get({ host: '127.0.0.1', port, path: `/${number}`, agent }, (response) => {
    let body = '';
    response.on('data', (data) => { body += data; });
    response.on('end', () => {
      out.write(`${number} ${body}`);
      if (!fs.existsSync(home + '/finish')) return void setTimeout(ask, 40 * number);
      agent.destroy();
      web.close();
      ended();
    });
  });
  ask();
}

const inet = net.createServer(serve);
const local = net.createServer(serve);
inet.listen({ port: 0, host: '127.0.0.1' }, () => client(1, { port: inet.address().port, host: '127.0.0.1' }, inet));
local.listen(home + '/socket', () => client(2, home + '/socket', local));
web.listen({ port: 0, host: '127.0.0.1' }, () => browser(3, web.address().port));
