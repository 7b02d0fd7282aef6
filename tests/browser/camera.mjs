// A camera of Chromium's whose picture is a file: whatever a screen shows, held before it.

import {writeFile} from 'node:fs/promises';

const [WIDTH, HEIGHT] = [1280, 720];

export class Camera {
  #file;

  constructor(file) {
    this.#file = file;
  }

  // Flags of the browser that has this camera.
  get flags() {
    return ['--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream', `--use-file-for-fake-video-capture=${this.#file}`];
  }

  // From the next time that it is turned on, it sees this element of a page, as large as it goes.
  async sees(element) {
    const png = (await element.screenshot()).toString('base64');
    const luma = Buffer.from(await element.page().evaluate(lumaOf, {png, width: WIDTH, height: HEIGHT}), 'base64');
    const colour = Buffer.alloc(luma.length / 2, 128);
    const frame = Buffer.concat([Buffer.from('FRAME\n'), luma, colour]);
    await writeFile(this.#file, Buffer.concat([Buffer.from(`YUV4MPEG2 W${WIDTH} H${HEIGHT} F30:1 Ip A1:1 C420jpeg\n`), frame, frame]));
  }
}

// In the page: a picture in the middle of a grey one, as a camera sees it: a little turned, and each pixel as bright as what it covers.
async function lumaOf({png, width, height}) {
  const bitmap = await createImageBitmap(new Blob([Uint8Array.from(atob(png), (char) => char.charCodeAt(0))]));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext('2d');
  context.fillStyle = '#888';
  context.fillRect(0, 0, width, height);
  context.translate(width / 2, height / 2);
  context.rotate(0.02);
  const scale = (0.95 * height) / bitmap.height;
  context.scale(scale, scale);
  context.drawImage(bitmap, -bitmap.width / 2, -bitmap.height / 2);
  const {data} = context.getImageData(0, 0, width, height);
  let text = '';
  for (let at = 1; at < data.length; at += 4) {
    text += String.fromCharCode(data[at]);
  }
  return btoa(text);
}
