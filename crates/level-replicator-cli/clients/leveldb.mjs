// Writes, reads or holds a LevelDB database: entries are printed as the tool exports them.
import { ClassicLevel } from 'classic-level'

const [job, directory] = process.argv.slice(2)
const db = new ClassicLevel(directory, { keyEncoding: 'buffer', valueEncoding: 'buffer' })
await db.open()

const shown = (name, bytes) => {
  const text = bytes.toString('utf8')
  return Buffer.from(text).equals(bytes) ? { [name]: text } : { [`${name}_b64`]: bytes.toString('base64') }
}

if (job === 'write') {
  let batch = db.batch()
  for (let number = 0; number < 20000; number++) {
    const key = Buffer.from(`key/${(number * 7919) % 20000}`)
    // Some are no text, some are empty, some are large, some are written twice, and some are deleted.
    const value = Buffer.alloc(number % 1000 === 0 ? 100000 : number % 50, number % 256)
    if (number % 5 === 0) key[0] = 0xff
    batch.put(key, value)
    if (number % 11 === 0) batch.put(key, Buffer.from(`second ${number}`))
    if (number % 13 === 0) batch.del(key)
    if (number % 500 === 499) {
      await batch.write()
      batch = db.batch()
    }
  }
  await batch.write()
}
if (job === 'hold') {
  console.log('held')
  await new Promise((resolve) => setTimeout(resolve, 60000))
} else {
  for await (const [key, value] of db.iterator()) console.log(JSON.stringify({ ...shown('key', key), ...shown('value', value) }))
}
await db.close()
