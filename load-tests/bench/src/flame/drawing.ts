import { microsByOwner, type Frame, type Origin } from './profile.js';

/** What is written above the graph. */
export interface Caption {
  readonly title: string;
  /** The command that made it, and when. */
  readonly lines: readonly string[];
}

const WIDTH = 1600;
const MARGIN = 16;
const ROW = 17;
const TEXT_SIZE = 11;
const CHARACTER = 6.62;
const MOST_CHARACTERS_OF_SVG = 200_000;
/** A narrower frame cannot be seen. */
const NARROWEST_PX = 0.6;
const OWNERS = 14;
const OWNERS_PER_ROW = 7;

const COLOURS: Record<Origin, string> = {
  suite: '#f4a259',
  library: '#8cb4d9',
  node: '#a8d5a2',
  engine: '#cfcfcf',
};
const LEGEND: Record<Origin, string> = {
  suite: 'the suite',
  library: 'libraries',
  node: 'Node.js',
  engine: 'V8 and native code',
};

/**
 * Draws a flame graph that needs nothing but a viewer of SVG: callers below, what they called above, as wide as the CPU time.
 * Resting the pointer on a frame shows its place and its share.
 */
export function drawFlameGraph(tree: Frame, caption: Caption): string {
  for (let narrowest = NARROWEST_PX; ; narrowest *= 1.5) {
    const svg = draw(tree, caption, narrowest);
    if (svg.length <= MOST_CHARACTERS_OF_SVG) return svg;
  }
}

interface Box {
  readonly frame: Frame;
  readonly depth: number;
  readonly x: number;
  readonly width: number;
}

function draw(tree: Frame, caption: Caption, narrowest: number): string {
  const boxes = boxesOf(tree, narrowest);
  const depth = Math.max(...boxes.map((box) => box.depth)) + 1;
  const owners = microsByOwner(tree).slice(0, OWNERS);
  const ownerRows = Math.ceil(owners.length / OWNERS_PER_ROW);
  const headHeight = 30 + (caption.lines.length + 1 + ownerRows) * ROW + 14;
  const height = headHeight + depth * ROW + MARGIN;
  const share = (micros: number) => `${((100 * micros) / tree.micros).toFixed(1)} %`;

  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}">`,
    `<style>text{font:${TEXT_SIZE}px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#1b1b1b}`,
    `g:hover>rect{stroke:#1b1b1b;stroke-width:1}.h{font-size:18px}`,
    ...Object.entries(COLOURS).map(([origin, colour]) => `.${origin}{fill:${colour}}`),
    `</style><rect width="100%" height="100%" fill="#fff"/>`,
    `<text class="h" x="${MARGIN}" y="26">${escaped(caption.title)}</text>`,
  ];
  let y = 30;
  for (const line of caption.lines)
    parts.push(`<text x="${MARGIN}" y="${(y += ROW)}">${escaped(line)}</text>`);
  y += ROW;
  for (const [index, origin] of (Object.keys(COLOURS) as Origin[]).entries()) {
    const x = MARGIN + index * 220;
    const micros = microsByOwner(tree).reduce(
      (sum, one) => sum + (one.origin === origin ? one.micros : 0),
      0,
    );
    parts.push(
      `<rect class="${origin}" x="${x}" y="${y - 10}" width="12" height="12"/>`,
      `<text x="${x + 18}" y="${y}">${LEGEND[origin]} ${share(micros)}</text>`,
    );
  }
  for (const [index, { owner, micros }] of owners.entries()) {
    if (index % OWNERS_PER_ROW === 0) y += ROW;
    const x = MARGIN + (index % OWNERS_PER_ROW) * ((WIDTH - 2 * MARGIN) / OWNERS_PER_ROW);
    parts.push(`<text x="${x.toFixed(0)}" y="${y}">${escaped(cut(owner, 24))} ${share(micros)}</text>`);
  }

  for (const { frame, depth: level, x, width } of boxes) {
    const top = headHeight + (depth - 1 - level) * ROW;
    const label = cut(frame.name, Math.floor((width - 4) / CHARACTER));
    const place = frame.place && `\n${frame.place}`;
    const told = `${frame.name}${place}\n${share(frame.micros)}, itself ${share(frame.selfMicros)}`;
    parts.push(
      `<g><title>${escaped(told)}</title><rect class="${frame.origin}" x="${x.toFixed(1)}" y="${top}" `,
      `width="${Math.max(0.3, width - 0.5).toFixed(1)}" height="${ROW - 1}"/>`,
      label && `<text x="${(x + 2).toFixed(1)}" y="${top + 12}">${escaped(label)}</text>`,
      '</g>\n',
    );
  }
  parts.push('</svg>\n');
  return parts.join('');
}

function boxesOf(tree: Frame, narrowest: number): Box[] {
  const pixelsPerMicro = (WIDTH - 2 * MARGIN) / tree.micros;
  const boxes: Box[] = [];
  const place = (frame: Frame, depth: number, x: number) => {
    const width = frame.micros * pixelsPerMicro;
    if (!(width >= narrowest)) return;
    boxes.push({ frame, depth, x, width });
    let at = x;
    for (const callee of [...frame.callees.values()].sort((a, b) => b.micros - a.micros)) {
      place(callee, depth + 1, at);
      at += callee.micros * pixelsPerMicro;
    }
  };
  place(tree, 0, MARGIN);
  return boxes;
}

/** So many characters at most; nothing where not even three would fit. */
function cut(text: string, most: number): string {
  if (text.length <= most) return text;
  return most < 3 ? '' : `${text.slice(0, most - 1)}…`;
}

function escaped(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}
