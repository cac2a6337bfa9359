// A head with ARKit's actions, from a glTF file, drawn with WebGL. No library.

const CM = 100; // the file is in metres
const NECK = [-17.5, -7]; // cm; below it stays, above it turns with the head
const EYES_APART = 9.2; // cm between the outer eye corners, the unit of a pose's translation
const TYPES = { 5121: Uint8Array, 5122: Int16Array, 5123: Uint16Array };

/** Parts of a `.glb` of training/head_mesh.py: points in cm, triangles, and targets by name. */
export function parse(buffer) {
  const view = new DataView(buffer);
  const length = view.getUint32(12, true);
  const file = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 20, length)));
  const binary = 20 + length + 8;

  const bytes = (index, type, count) => {
    const { byteOffset } = file.bufferViews[index];
    return new TYPES[type](buffer.slice(binary + byteOffset).slice(0, count * TYPES[type].BYTES_PER_ELEMENT));
  };
  const strided = (index, used) => {
    const accessor = file.accessors[index];
    const stride = file.bufferViews[accessor.bufferView].byteStride / TYPES[accessor.componentType].BYTES_PER_ELEMENT;
    const raw = bytes(accessor.bufferView, accessor.componentType, accessor.count * stride);
    return Float32Array.from({ length: accessor.count * used }, (_, i) => raw[Math.floor(i / used) * stride + (i % used)]);
  };

  return file.nodes.map((node) => {
    const mesh = file.meshes[node.mesh];
    const [{ attributes, indices, targets }] = mesh.primitives;
    const scale = node.scale[0] * CM;
    const order = file.accessors[indices];
    return {
      name: node.name,
      points: strided(attributes.POSITION, 3).map((value) => value * scale),
      inside: strided(attributes._INSIDE, 1).map((value) => value / 255),
      triangles: bytes(order.bufferView, order.componentType, order.count),
      targets: Object.fromEntries(
        targets.map(({ POSITION }, i) => {
          const { count, indices, values } = file.accessors[POSITION].sparse;
          const moved = bytes(indices.bufferView, indices.componentType, count);
          const offsets = Float32Array.from(bytes(values.bufferView, 5122, 3 * count), (value) => value * scale);
          return [mesh.extras.targetNames[i], { moved, offsets }];
        }),
      ),
    };
  });
}

const VERTEX = `
  attribute vec3 point, normal, rest;
  attribute vec2 tint; // lip, inside of the mouth
  uniform vec3 turn, shift, eye;
  uniform vec2 neck;
  uniform mat4 project;
  varying vec3 at, facing, resting;
  varying vec2 tinted;

  mat3 turned(vec3 a) {
    vec3 c = cos(a), s = sin(a);
    mat3 yaw = mat3(c.x, 0, -s.x, 0, 1, 0, s.x, 0, c.x);
    mat3 pitch = mat3(1, 0, 0, 0, c.y, s.y, 0, -s.y, c.y);
    mat3 roll = mat3(c.z, s.z, 0, -s.z, c.z, 0, 0, 0, 1);
    return yaw * pitch * roll;
  }

  void main() {
    float share = smoothstep(neck.x, neck.y, rest.y);
    vec3 pivot = vec3(0, -7, -1);
    mat3 r = turned(turn * share);
    at = r * (point - pivot) + pivot + shift * share;
    facing = r * normal;
    resting = rest;
    tinted = tint;
    gl_Position = project * vec4(at - eye, 1);
  }
`;

const FRAGMENT = `
  precision highp float;
  uniform float kind; // 0 skin, 1 gums, 2 teeth, 3 eyes
  uniform vec3 eye;
  varying vec3 at, facing, resting;
  varying vec2 tinted;

  vec3 skin() {
    vec3 base = vec3(0.80, 0.60, 0.50);
    float x = abs(resting.x);
    float warm = exp(-dot(vec2(x - 5.2, resting.y + 0.6), vec2(x - 5.2, resting.y + 0.6)) / 9.0);
    base = mix(base, vec3(0.80, 0.50, 0.43), 0.35 * warm * step(0.0, resting.z));
    float lip = tinted.x * smoothstep(-4.75, -4.25, resting.y - 0.05 * x * x);
    base = mix(base, vec3(0.68, 0.36, 0.34), 0.75 * lip);
    float along = clamp((x - 1.3) / 4.9, 0.0, 1.0);
    float arch = 5.55 + 0.95 * sin(2.2 * along) - 0.35 * along;
    float thick = mix(0.42, 0.13, along) * smoothstep(0.0, 0.12, along);
    float brow = 1.0 - smoothstep(0.55 * thick, 1.3 * thick, abs(resting.y - arch));
    brow *= smoothstep(1.15, 1.5, x) * (1.0 - smoothstep(5.9, 6.3, x)) * step(4.0, resting.z);
    base = mix(base, vec3(0.20, 0.13, 0.10), 0.82 * brow);
    return mix(base, vec3(0.20, 0.06, 0.06), tinted.y);
  }

  vec3 eyeball() {
    vec3 d = resting - vec3(sign(resting.x) * 3.095, 3.615, 8.0);
    float r = length(d.xy) / 1.5 + (d.z < 0.0 ? 2.0 : 0.0);
    vec3 white = mix(vec3(0.93, 0.91, 0.89), vec3(0.85, 0.70, 0.66), smoothstep(0.62, 1.0, r));
    vec3 iris = mix(vec3(0.36, 0.50, 0.55), vec3(0.12, 0.20, 0.25), smoothstep(0.22, 0.47, r));
    iris *= 0.85 + 0.15 * sin(22.0 * atan(d.y, d.x));
    vec3 base = mix(iris, white, smoothstep(0.44, 0.50, r));
    return mix(vec3(0.02), base, smoothstep(0.17, 0.21, r));
  }

  void main() {
    vec3 n = normalize(facing), v = normalize(eye - at);
    if (dot(n, v) < 0.0 && kind < 0.5) n = -n;
    vec3 base = kind < 0.5 ? skin() : kind < 1.5 ? vec3(0.62, 0.27, 0.27) : kind < 2.5 ? vec3(0.88, 0.85, 0.79) : eyeball();
    vec3 key = normalize(vec3(-0.55, 0.65, 0.75)), fill = normalize(vec3(0.8, 0.1, 0.5));
    float lit = max(0.0, (dot(n, key) + 0.35) / 1.35);
    vec3 light = vec3(0.30, 0.30, 0.34) * (0.75 + 0.25 * n.y) + vec3(0.86, 0.80, 0.74) * lit * lit;
    light += vec3(0.15, 0.18, 0.24) * max(0.0, dot(n, fill));
    float wet = kind > 2.5 ? 1.0 : kind > 0.5 ? 0.35 : mix(0.10, 0.30, tinted.x);
    float gloss = kind > 2.5 ? 180.0 : 28.0;
    vec3 shine = vec3(wet) * pow(max(0.0, dot(n, normalize(key + v))), gloss);
    float rim = pow(1.0 - max(0.0, dot(n, v)), 4.0) * (kind < 0.5 ? 0.22 : 0.0);
    // Within the mouth and under the brows little light arrives.
    float depth = kind > 0.5 && kind < 2.5 ? smoothstep(5.0, 10.5, resting.z) : 1.0;
    if (kind > 2.5) depth = 1.0 - 0.45 * smoothstep(0.1, 1.1, resting.y - 3.615);
    vec3 colour = (base * light + shine + rim * vec3(0.6, 0.7, 0.8)) * mix(0.25, 1.0, depth);
    float shown = smoothstep(-19.0, -14.5, resting.y);
    gl_FragColor = vec4(pow(colour, vec3(0.88)) * shown, shown);
  }
`;

const KINDS = { skin: 0, gums: 1, teeth: 2, eyes: 3 };

/** Draws a head on `canvas`. */
export class Head {
  #gl;
  #uniforms = {};
  #parts;
  #canvas;

  static async load(canvas, address) {
    const response = await fetch(address);
    return new Head(canvas, parse(await response.arrayBuffer()));
  }

  constructor(canvas, parts) {
    const gl = canvas.getContext("webgl", { antialias: true, alpha: true, preserveDrawingBuffer: true });
    if (!gl) throw new Error("this browser has no WebGL");
    this.#gl = gl;
    this.#canvas = canvas;
    const program = link(gl);
    gl.useProgram(program);
    gl.enable(gl.DEPTH_TEST);
    for (const name of ["turn", "shift", "eye", "neck", "project", "kind"]) {
      this.#uniforms[name] = gl.getUniformLocation(program, name);
    }
    this.#parts = parts.map((part) => new Part(gl, program, part));
    this.draw({}, {});
  }

  /** `actions` by ARKit's names, 0 to 1; `pose`: yaw, pitch, roll in radians, and x, y, z. */
  draw(actions, { yaw = 0, pitch = 0, roll = 0, x = 0, y = 0, z = 0 }) {
    const gl = this.#gl;
    const { clientWidth, clientHeight } = this.#canvas;
    const density = Math.min(2, window.devicePixelRatio || 1);
    const [width, height] = [clientWidth * density, clientHeight * density].map(Math.round);
    if (this.#canvas.width !== width || this.#canvas.height !== height) Object.assign(this.#canvas, { width, height });
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.uniform3f(this.#uniforms.turn, yaw, pitch, roll);
    gl.uniform3f(this.#uniforms.shift, x * EYES_APART, y * EYES_APART, z * EYES_APART);
    gl.uniform3f(this.#uniforms.eye, 0, -2.2, 92);
    gl.uniform2f(this.#uniforms.neck, ...NECK);
    gl.uniformMatrix4fv(this.#uniforms.project, false, perspective(width / height));
    for (const part of this.#parts) {
      gl.uniform1f(this.#uniforms.kind, KINDS[part.name]);
      part.draw(actions);
    }
  }
}

class Part {
  #gl;
  #part;
  #now;
  #normals;
  #buffers;

  constructor(gl, program, part) {
    this.#gl = gl;
    this.#part = part;
    this.name = part.name;
    this.#now = part.points.slice();
    this.#normals = new Float32Array(part.points.length);
    const tints = new Float32Array((part.points.length / 3) * 2);
    part.inside.forEach((value, i) => (tints[2 * i + 1] = value));
    lips(part).forEach((value, i) => (tints[2 * i] = value));
    const attribute = (name, size, data, usage) => {
      const buffer = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, data, usage);
      return { buffer, size, place: gl.getAttribLocation(program, name) };
    };
    this.#buffers = {
      point: attribute("point", 3, this.#now, gl.DYNAMIC_DRAW),
      normal: attribute("normal", 3, this.#normals, gl.DYNAMIC_DRAW),
      rest: attribute("rest", 3, part.points, gl.STATIC_DRAW),
      tint: attribute("tint", 2, tints, gl.STATIC_DRAW),
      order: gl.createBuffer(),
    };
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.#buffers.order);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, part.triangles, gl.STATIC_DRAW);
  }

  draw(actions) {
    const gl = this.#gl;
    this.#move(actions);
    for (const [name, data] of [["point", this.#now], ["normal", this.#normals]]) {
      gl.bindBuffer(gl.ARRAY_BUFFER, this.#buffers[name].buffer);
      gl.bufferSubData(gl.ARRAY_BUFFER, 0, data);
    }
    for (const name of ["point", "normal", "rest", "tint"]) {
      const { buffer, size, place } = this.#buffers[name];
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, size, gl.FLOAT, false, 0, 0);
    }
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.#buffers.order);
    gl.drawElements(gl.TRIANGLES, this.#part.triangles.length, gl.UNSIGNED_SHORT, 0);
  }

  #move(actions) {
    const now = this.#now;
    now.set(this.#part.points);
    for (const [name, { moved, offsets }] of Object.entries(this.#part.targets)) {
      const weight = actions[name] ?? 0;
      if (weight < 0.002) continue;
      for (let k = 0; k < moved.length; k++) {
        const at = 3 * moved[k];
        now[at] += weight * offsets[3 * k];
        now[at + 1] += weight * offsets[3 * k + 1];
        now[at + 2] += weight * offsets[3 * k + 2];
      }
    }
    addNormals(now, this.#part.triangles, this.#normals);
  }
}

/** How far each point is lip: what rolls in with `mouthRoll`. */
function lips({ points, inside, targets }) {
  const lip = new Float32Array(points.length / 3);
  for (const name of ["mouthRollLower", "mouthRollUpper"]) {
    const { moved, offsets } = targets[name];
    moved.forEach((at, k) => {
      const [x, y, z] = offsets.subarray(3 * k, 3 * k + 3);
      lip[at] = Math.max(lip[at], Math.hypot(x, y, z));
    });
  }
  const most = lip.reduce((a, b) => Math.max(a, b), 1e-6);
  return lip.map((value, i) => Math.min(1, Math.max(0, (value / most - 0.3) / 0.3)) * (1 - inside[i]));
}

function addNormals(points, triangles, normals) {
  normals.fill(0);
  for (let i = 0; i < triangles.length; i += 3) {
    const [a, b, c] = [3 * triangles[i], 3 * triangles[i + 1], 3 * triangles[i + 2]];
    const ux = points[b] - points[a], uy = points[b + 1] - points[a + 1], uz = points[b + 2] - points[a + 2];
    const vx = points[c] - points[a], vy = points[c + 1] - points[a + 1], vz = points[c + 2] - points[a + 2];
    const nx = uy * vz - uz * vy, ny = uz * vx - ux * vz, nz = ux * vy - uy * vx;
    for (const at of [a, b, c]) {
      normals[at] += nx;
      normals[at + 1] += ny;
      normals[at + 2] += nz;
    }
  }
}

function perspective(aspect) {
  const f = 1 / Math.tan((23.5 * Math.PI) / 180 / 2), near = 10, far = 200;
  const wide = Math.min(1, aspect); // a narrow canvas shows the head's whole width
  return [(f * wide) / aspect, 0, 0, 0, 0, f * wide, 0, 0, 0, 0, (far + near) / (near - far), -1, 0, 0, (2 * far * near) / (near - far), 0];
}

function link(gl) {
  const program = gl.createProgram();
  for (const [type, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  return program;
}
