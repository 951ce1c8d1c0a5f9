export class Drift {
  constructor(node) { this.node = node; }
  shown() {}
}
