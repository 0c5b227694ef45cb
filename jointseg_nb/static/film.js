// The run's masks so far: a list of frames, packed as they came, with the last ones looked at kept unpacked.

import { inflate } from './wire.js';

const ROOM = 128e6; // bytes of unpacked masks to keep: 300 frames of 8 eyes of 224 px

export class Film {
  constructor() {
    this.frames = [];        // {step, grades, sure, packed}, in order of their steps
    this.unpacked = new Map(); // step -> Uint8Array; the one used last stands last
    this.bytes = 0;
  }

  get length() { return this.frames.length; }

  /** A frame that came from the kernel; most come in order, those of a reload in chunks. */
  add(frame) {
    let i = this.frames.length;
    while (i > 0 && this.frames[i - 1].step >= frame.step) i--;
    const same = this.frames[i]?.step === frame.step;
    this.frames.splice(i, same ? 1 : 0, frame);
    if (same) this.forget(frame.step);
  }

  /** Frames that the kernel has thinned out. */
  drop(steps) {
    const gone = new Set(steps);
    this.frames = this.frames.filter(f => !gone.has(f.step));
    for (const s of gone) this.forget(s);
  }

  forget(step) {
    this.bytes -= this.unpacked.get(step)?.length ?? 0;
    this.unpacked.delete(step);
  }

  /** Position of the frame at `step`, or of the last one before it. */
  at(step) {
    let low = 0, high = this.frames.length - 1;
    while (low < high) {
      const mid = (low + high + 1) >> 1;
      if (this.frames[mid].step <= step) low = mid; else high = mid - 1;
    }
    return low;
  }

  /** The masks of a frame if they are unpacked, else null; then `unpack` gets them. */
  masks(frame) {
    const found = this.unpacked.get(frame.step);
    if (!found) return null;
    this.unpacked.delete(frame.step);
    this.unpacked.set(frame.step, found);
    return found;
  }

  async unpack(frame) {
    const known = this.masks(frame);
    if (known) return known;
    const masks = await inflate(frame.packed);
    if (!this.unpacked.has(frame.step) && this.frames.includes(frame)) {
      this.unpacked.set(frame.step, masks);
      this.bytes += masks.length;
      while (this.bytes > ROOM && this.unpacked.size > 1) this.forget(this.unpacked.keys().next().value);
    }
    return masks;
  }
}
