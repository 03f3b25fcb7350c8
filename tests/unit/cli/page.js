// A tab of a browser, as far as reload.js needs one: run as `node page.js URL`, told by lines on its standard input
// (load RELEASE, hide, show), it says on its standard output what happens.
const http = require("http");
const readline = require("readline");
const vm = require("vm");

const url = process.argv[2];
const say = (text) => process.stdout.write(text + "\n");
const stored = new Map();
let page = null;

class EventSource {
  constructor(address) {
    this.readyState = 0;
    const of = page;
    this.request = http.get(address, (answer) => {
      this.readyState = 1;
      say("open");
      answer.setEncoding("utf8");
      let text = "";
      answer.on("data", (data) => {
        const events = (text + data).split("\n\n");
        text = events.pop();
        for (const event of events) {
          const line = event.split("\n").find((each) => each.startsWith("data: "));
          if (!line || of !== page) continue;
          this.onmessage({ data: line.slice(6) });
          say("told " + line.slice(6));
        }
      });
      answer.on("close", () => this.failed());
    });
    this.request.on("error", () => this.failed());
  }
  failed() {
    if (this.readyState === 2) return;
    this.readyState = 2; // as Firefox does when nobody listens; what connects again by itself needs no script
    say("lost");
    this.onerror({ target: this });
  }
  close() {
    this.readyState = 2;
    this.request.destroy();
    say("closed");
  }
}

function load(release) {
  http.get(url + "/reload.js", (answer) => {
    let script = "";
    answer.on("data", (data) => (script += data));
    answer.on("end", () => {
      const document = {
        hidden: false,
        currentScript: { dataset: release ? { release } : {} },
        addEventListener: (name, run) => (document[name] = run),
      };
      const context = {
        document,
        EventSource,
        setTimeout: (run) => setTimeout(run, 20),
        location: { pathname: "/", reload: () => say("reload") },
        sessionStorage: {
          getItem: (key) => (stored.has(key) ? stored.get(key) : null),
          setItem: (key, value) => stored.set(key, value),
          removeItem: (key) => stored.delete(key),
        },
      };
      context.window = context;
      page = document;
      vm.createContext(context);
      vm.runInContext(script, context);
      vm.runInContext(script, context); // a tag too many
    });
  });
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const [word, release] = line.split(" ");
  if (word === "load") return load(release);
  page.hidden = word === "hide";
  page.visibilitychange();
}).on("close", () => process.exit(0));
