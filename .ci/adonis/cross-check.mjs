// Checks our AdonisJS format against the real `@adonisjs/encryption`, in both directions: what AdonisJS writes we read,
// what we write AdonisJS reads, and where AdonisJS answers null we answer null.
//
// Usage: node cross-check.mjs COMMAND [ARGUMENT…], where the command is our side (shared/cipher/examples/adonis_cipher.rs).

import { spawnSync } from 'node:child_process'
import { Encryption } from '@adonisjs/encryption'

const APP_KEYS = [
  '0123456789abcdefghijklmnopqrstuv',
  'sixteen letters!',
  'Zk3_-+/=%$ é漢 with signs and spaces',
  '😀'.repeat(8), // 16 for JavaScript, which counts UTF-16 code units
  'k'.repeat(200),
]

const MESSAGES = [
  'hello',
  'cfabdegwdoklmawdzdo98xt2fo512y',
  'eyJfaWQmNzMtNGCJ9%6VFV5LNrZFUj8oU231/3Aj', // refresh tokens may hold `%` and `/`
  'a%2Fb/c%25%/+=&?#',
  '"quoted" \\ back\\slash, {"message":"inside"}',
  '\u0000\u0001\b\t\n\u000b\f\r\u001f\u007f\u0080\u2028\u2029\ufeff',
  'é ß 漢字 עברית 😀 👩‍👩‍👧',
  ' ',
  'x'.repeat(2048),
  '😀'.repeat(512),
  ...Array.from({ length: 33 }, (_, length) => 'p'.repeat(length + 1)), // every length of padding
]

/** For texts that expire. */
const HOUR = 3600 * 1000

/** Texts that AdonisJS can be asked to read, whatever comes out. */
function textsToRead(adonis, other) {
  const hello = adonis.encrypt('hello')
  const [ciphertext, iv, mac] = hello.split('.')
  const changed = (part) => (part[0] === 'A' ? 'B' : 'A') + part.slice(1)
  return [
    ...MESSAGES.map((message) => adonis.encrypt(message)),
    adonis.encrypt(''),
    adonis.encrypt('for something else', undefined, 'login'),
    adonis.encrypt('for an hour', '1 hour'),
    other.encrypt('with another key'),
    `${hello}.fourth`,
    `${hello}.fourth.fifth`,
    `${changed(ciphertext)}.${iv}.${mac}`,
    `${ciphertext}.${changed(iv)}.${mac}`,
    `${ciphertext}.${iv}.${changed(mac)}`,
    `${ciphertext}=.${iv}.${mac}`,
    `${ciphertext}.${iv}==.${mac}`,
    `${ciphertext}.${iv}.${mac}=`,
    `${ciphertext}.${iv}`,
    `.${iv}.${mac}`,
    'invalid',
    'v1.k1.bm9uY2Ugb2YgMTJi.HYEOtWWILMCSNmSUkhnw6G0T9Rbq',
    '',
    '..',
  ]
}

/** Our answers to all requests, in their order. */
function ask(requests) {
  const [command, ...args] = process.argv.slice(2)
  const input = requests.map((request) => JSON.stringify(request) + '\n').join('')
  const ours = spawnSync(command, args, {
    input,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  if (ours.error) throw ours.error
  if (ours.status !== 0) throw new Error(`our side ended with ${ours.status ?? ours.signal}`)
  const answers = ours.stdout.split('\n').slice(0, -1).map((line) => JSON.parse(line))
  if (answers.length !== requests.length) {
    throw new Error(`${requests.length} requests got ${answers.length} answers`)
  }
  return answers
}

const differences = []
function compare(what, expected, found, why) {
  if (expected === found) return
  const show = (text) => JSON.stringify(text).slice(0, 200)
  differences.push(`${what}: expected ${show(expected)}, found ${show(found)}${why ? ` (${why})` : ''}`)
}

const now = new Date()
const requests = []
const checks = []
function check(request, judge) {
  requests.push({ now, ...request })
  checks.push(judge)
}

APP_KEYS.forEach((appKey, index) => {
  const adonis = new Encryption({ secret: appKey })
  const other = new Encryption({ secret: APP_KEYS[(index + 1) % APP_KEYS.length] })

  for (const text of textsToRead(adonis, other)) {
    check({ app_key: appKey, op: 'decrypt', text }, (answer) =>
      compare(`key ${index}, we read ${text.slice(0, 80)}`, adonis.decrypt(text), answer.text, answer.why)
    )
  }
  const later = new Date(now.getTime() + 2 * HOUR)
  check({ app_key: appKey, op: 'decrypt', text: adonis.encrypt('over', '1 hour'), now: later }, (answer) =>
    compare(`key ${index}, we read what has expired`, null, answer.text)
  )

  // AdonisJS takes an empty message for none, and so do we.
  for (const message of ['', ...MESSAGES]) {
    check({ app_key: appKey, op: 'encrypt', text: message }, (answer) =>
      compare(`key ${index}, AdonisJS reads ${answer.text.slice(0, 80)}`, message || null, adonis.decrypt(answer.text))
    )
  }
})

ask(requests).forEach((answer, index) => checks[index](answer))

if (differences.length > 0) {
  console.error(differences.join('\n'))
  console.error(`AdonisJS and our cipher differ in ${differences.length} of ${checks.length} checks.`)
  process.exit(1)
}
console.log(`AdonisJS and our cipher agree in ${checks.length} checks.`)
