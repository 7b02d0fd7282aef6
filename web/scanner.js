// Reads codes out of a camera's pictures: an ImageBitmap comes, the text of a code in it goes, or null.

import init, {read_code} from './waxwing.js';

const ready = init({module_or_path: new URL('./waxwing_bg.wasm', import.meta.url)});
const canvas = new OffscreenCanvas(1, 1);
const context = canvas.getContext('2d', {willReadFrequently: true});

self.onmessage = async ({data: picture}) => {
  // What fails here is answered with nothing, and the page starts anew.
  self.postMessage(await read(picture).catch((error) => console.warn(error)));
};

async function read(picture) {
  await ready;
  const {width, height} = picture;
  // A canvas that has its size keeps its memory.
  if (canvas.width !== width || canvas.height !== height) {
    [canvas.width, canvas.height] = [width, height];
  }
  context.drawImage(picture, 0, 0);
  picture.close();
  return read_code(context.getImageData(0, 0, width, height).data, width) ?? null;
}
