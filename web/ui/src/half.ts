/** Half-precision floats, as embeddings and logits travel; and their base64. */

const BITS = new ArrayBuffer(4);
const AS_FLOAT = new Float32Array(BITS);
const AS_INT = new Uint32Array(BITS);
let table: Float32Array | null = null;

export function halvesToFloats(halves: Uint16Array): Float32Array {
  table ??= Float32Array.from({ length: 1 << 16 }, (_, half) => halfToFloat(half));
  const floats = new Float32Array(halves.length);
  for (let index = 0; index < halves.length; index++) floats[index] = table[halves[index]];
  return floats;
}

export function floatsToHalves(floats: Float32Array): Uint16Array {
  const halves = new Uint16Array(floats.length);
  for (let index = 0; index < floats.length; index++) halves[index] = floatToHalf(floats[index]);
  return halves;
}

function halfToFloat(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** To the nearest, ties to even. */
export function floatToHalf(value: number): number {
  AS_FLOAT[0] = value;
  const bits = AS_INT[0];
  const sign = (bits >>> 16) & 0x8000;
  const exponent = (bits >>> 23) & 255;
  const fraction = bits & 0x7fffff;
  if (exponent === 255) return sign | 0x7c00 | (fraction ? 512 : 0);
  if (exponent < 102) return sign;
  if (exponent < 113) {
    const whole = fraction | 0x800000;
    return sign | roundOff(whole, 126 - exponent);
  }
  // Rounding up may carry into the exponent, and from there to infinity: both are right.
  return sign | Math.min(0x7c00, roundOff(((exponent - 112) << 23) | fraction, 13));
}

function roundOff(bits: number, places: number): number {
  const kept = bits >>> places;
  const rest = bits & ((1 << places) - 1);
  const half = 1 << (places - 1);
  return rest > half || (rest === half && kept & 1) ? kept + 1 : kept;
}

export function bytesToBase64(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  }
  return btoa(text);
}

export function base64ToBytes(text: string): Uint8Array<ArrayBuffer> {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let index = 0; index < raw.length; index++) bytes[index] = raw.charCodeAt(index);
  return bytes;
}
