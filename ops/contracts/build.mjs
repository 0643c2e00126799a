// Compiles src/ with the solc of package.json into artifacts/, the same bytes on every machine and without a network.
// With --check it writes nothing and fails where an artefact differs.
import { existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const require = createRequire(import.meta.url);
const solc = require("solc");
const here = dirname(fileURLToPath(import.meta.url));
const names = readdirSync(join(here, "src")).filter((name) => name.endsWith(".sol")).sort();
const isCheck = process.argv.includes("--check");

const wanted = ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"];
const input = {
  language: "Solidity",
  sources: Object.fromEntries(
    names.map((name) => [`src/${name}`, { content: readFileSync(join(here, "src", name), "utf8") }]),
  ),
  settings: {
    optimizer: { enabled: true, runs: 20000 }, viaIR: true,
    evmVersion: "cancun",
    metadata: { bytecodeHash: "none", appendCBOR: false },
    outputSelection: Object.fromEntries(names.map((name) => [`src/${name}`, { "*": wanted }])),
  },
};
const open = (path) => {
  const file = path.startsWith("@") ? join(here, "node_modules", path) : join(here, path);
  return existsSync(file) ? { contents: readFileSync(file, "utf8") } : { error: `${path} is not there; run npm ci` };
};
const output = JSON.parse(solc.compile(JSON.stringify(input), { import: open }));
const faults = (output.errors ?? []).filter((fault) => fault.severity === "error");
if (faults.length > 0) {
  faults.forEach((fault) => console.error(fault.formattedMessage));
  process.exit(1);
}

const CODE_BYTES_MAX = 24576;
let differing = 0;
for (const name of names) {
  for (const [contract, made] of Object.entries(output.contracts[`src/${name}`])) {
    const code = made.evm.deployedBytecode.object;
    if (code.length === 0) continue; // an interface
    if (code.length / 2 > CODE_BYTES_MAX) throw new Error(`${contract} has ${code.length / 2} bytes of code`);
    const artefact = `${JSON.stringify(
      { contract, solc: solc.version(), abi: made.abi, bytecode: `0x${made.evm.bytecode.object}`, deployedBytecode: `0x${code}` },
      null,
      1,
    )}\n`;
    const path = join(here, "artifacts", `${contract}.json`);
    if (isCheck) {
      const isSame = existsSync(path) && readFileSync(path, "utf8") === artefact;
      differing += isSame ? 0 : 1;
      if (!isSame) console.error(`${path} is not what src/${name} compiles to`);
    } else {
      writeFileSync(path, artefact);
      console.log(`${contract}: ${code.length / 2} bytes`);
    }
  }
}
process.exit(differing > 0 ? 1 : 0);
