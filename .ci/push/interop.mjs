// Checks what we send against npm's `web-push-testing`: it takes our messages, verifies their signature with a library
// of its own and decrypts them; and it does not take what it must not take.
//
// Usage: KEYS='{"publicKey":…,"privateKey":…}' node interop.mjs COMMAND [ARGUMENT…], where the command is our side
// (shared/push/examples/send.rs).

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'

const require = createRequire(import.meta.url)
const TestingServer = require('web-push-testing/src/server.js')
const { PushApiModel } = require('web-push-testing/src/PushApiModel.js')

const keys = JSON.parse(process.env.KEYS)

/** The server on a free port of loopback: by itself it would listen everywhere. */
async function start() {
  const model = new PushApiModel()
  const testing = new TestingServer(model, 0)
  const server = createServer(testing._app).listen(0, '127.0.0.1')
  await once(server, 'listening')
  testing.setRequestHandlers()
  const base = `http://localhost:${server.address().port}`
  model.notifyUrl = `${base}/notify/`
  return { base, server }
}

const { base, server } = await start()

async function ask(path, body = {}) {
  const answer = await fetch(base.replace('localhost', '127.0.0.1') + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  })
  const text = await answer.text()
  assert.equal(answer.status, 200, `${path} answered ${answer.status}: ${text}`)
  return text.startsWith('{') ? JSON.parse(text).data : undefined
}

const subscribe = (applicationServerKey) => ask('/subscribe', { userVisibleOnly: 'true', applicationServerKey })

/** Sends these texts to a subscription, and answers with what our side made of each. */
async function send(subscription, payloads) {
  const [command, ...args] = process.argv.slice(2)
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] })
  for (const payload of payloads) {
    const { endpoint, keys: { p256dh, auth } } = subscription
    const request = { ...keys, subject: 'mailto:operator@twitch-polls.net', now: new Date(), endpoint, p256dh, auth }
    child.stdin.write(JSON.stringify({ ...request, payload, topic: 'topic' }) + '\n')
  }
  child.stdin.end()
  let output = ''
  child.stdout.on('data', (chunk) => (output += chunk))
  const [code] = await once(child, 'close')
  assert.equal(code, 0, `our side ended with ${code}`)
  return output.split('\n').slice(0, -1)
}

const payloads = [
  '{"type":"token:refresh_failed","title":"Connexion Twitch perdue"}',
  'é ß 漢字 עברית 😀',
  'x',
  'y'.repeat(3052),
]

const subscription = await subscribe(keys.publicKey)
assert.deepEqual(await send(subscription, payloads), payloads.map(() => 'Accepted'))
const { messages } = await ask('/get-notifications', { clientHash: subscription.clientHash })
assert.deepEqual(messages, payloads)

// Another sender's subscription: the check can fail.
const other = await subscribe('BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4')
const [refused] = await send(other, ['hello'])
assert.match(refused, /answered 400/)

await ask(`/expire-subscription/${subscription.clientHash}`)
assert.deepEqual(await send(subscription, ['hello']), ['Gone'])

server.close()
server.closeAllConnections()
console.log(`web-push-testing takes and decrypts ${payloads.length} messages, and refuses what it must.`)
