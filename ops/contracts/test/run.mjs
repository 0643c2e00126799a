// Runs claims.vectors.json against the compiled contracts on a local anvil, and measures gas.
// Exits 0: all as expected; 1: something is not; 77: there is no anvil here.
// The port may be given: one that nobody else takes meanwhile. Without, the system is asked for one that is free now.
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const anvilPath = join(here, "..", "node_modules", "@foundry-rs", `anvil-${process.platform}-amd64`, "bin", "anvil");
if (!existsSync(anvilPath)) {
  console.log("skipped: no anvil in ops/contracts/node_modules; run npm ci there");
  process.exit(77);
}
const { ethers } = await import("ethers");

const vectors = JSON.parse(readFileSync(join(here, "claims.vectors.json"), "utf8"));
const artefact = (name) => JSON.parse(readFileSync(join(here, "..", "artifacts", `${name}.json`), "utf8"));
const keccak = ethers.keccak256;
const seedKey = (seed) => new ethers.Wallet(`0x${seed.toString(16).padStart(2, "0").repeat(32)}`);

// A second tree, written from the standard's text.
const abi = ethers.AbiCoder.defaultAbiCoder();
const leafOf = ([who, amount]) => keccak(keccak(abi.encode(["address", "uint256"], [vectors.accounts[who], amount])));
const pair = (a, b) => keccak(ethers.concat(BigInt(a) < BigInt(b) ? [a, b] : [b, a]));
function tree(leaves) {
  const sorted = leaves.map(leafOf).sort((a, b) => (BigInt(a) < BigInt(b) ? -1 : 1));
  const nodes = new Array(2 * sorted.length - 1);
  sorted.forEach((leaf, at) => (nodes[nodes.length - 1 - at] = leaf));
  for (let at = sorted.length - 2; at >= 0; at--) nodes[at] = pair(nodes[2 * at + 1], nodes[2 * at + 2]);
  const proof = (leaf) => {
    let at = nodes.lastIndexOf(leafOf(leaf));
    const way = [];
    for (; at > 0; at = (at - 1) >> 1) way.push(nodes[at % 2 === 1 ? at + 1 : at - 1]);
    return way;
  };
  return { root: nodes[0], proof };
}

// Where the contract after the next one will be: the distributor, which the token's constructor has to know.
const nextButOne = async (admin, from) => ethers.getCreateAddress({ from, nonce: (await admin.getNonce()) + 1 });

// Claims of one account among a million (twenty steps of proof), while forty later roots wait for their time.
const GAS_MAX = { first: 105000, repeated: 75000 };
async function gasOfClaims(deploy, admin, adminAddress, provider) {
  const pool = 10n ** 24n;
  const token = await deploy("Token", "MAKAI", "MAKAI", pool, await nextButOne(admin, adminAddress), [adminAddress], [pool]);
  const signer = seedKey(1);
  const terms = [pool, 100, 1000, 0, adminAddress, adminAddress];
  const account = ethers.getAddress("0x" + "ab".repeat(20));
  const proof = Array.from({ length: 20 }, (_, at) => keccak(ethers.toBeHex(at + 1, 32)));
  const rootOf = (cumulative) =>
    proof.reduce((node, sibling) => pair(node, sibling), keccak(keccak(abi.encode(["address", "uint256"], [account, cumulative]))));
  const opening = [rootOf(100n), 1, 1000n];
  const distributor = await deploy("Distributor", await token.getAddress(), terms, [signer.address], 1, opening);
  await (await token.transfer(await distributor.getAddress(), pool)).wait();
  const domain = { name: "MAKAI claims", version: "1", chainId: (await provider.getNetwork()).chainId, verifyingContract: await distributor.getAddress() };
  const types = { EpochRoot: ["uint64 epoch", "bytes32 root", "uint256 total", "bytes32 dataHash", "bytes32 prevRoot"].map((field) => ({ type: field.split(" ")[0], name: field.split(" ")[1] })) };
  const post = async (epoch, root, total) => {
    const message = { epoch, root, total, dataHash: ethers.ZeroHash, prevRoot: ethers.ZeroHash };
    await (await distributor.propose(epoch, root, total, message.dataHash, message.prevRoot, [await signer.signTypedData(domain, types, message)])).wait();
  };
  const claim = async (index, cumulative) => (await (await distributor.claim(index, account, cumulative, proof)).wait()).gasUsed;
  // The contract's own first payment writes counters that nobody pays for again.
  await post(2, rootOf(200n), 2000n);
  const contractsFirst = await claim(0, 100n);
  const other = ethers.getAddress("0x" + "cd".repeat(20));
  const otherRoot = proof.reduce((node, sibling) => pair(node, sibling), keccak(keccak(abi.encode(["address", "uint256"], [other, 50n]))));
  await post(3, otherRoot, 3000n);
  await provider.send("evm_increaseTime", [1000]);
  for (let epoch = 4; epoch < 44; epoch++) await post(epoch, rootOf(200n), 3000n + BigInt(epoch));
  const first = (await (await distributor.claim(2, other, 50n, proof)).wait()).gasUsed;
  const repeated = await claim(1, 200n);
  const isRight = first <= GAS_MAX.first && repeated <= GAS_MAX.repeated;
  console.log(`${isRight ? "ok" : "WRONG"} gas of a claim among a million: contract's first ${contractsFirst}, first ${first}, repeated ${repeated}`);
  return isRight ? 0 : 1;
}

const freePort = () =>
  new Promise((done, fail) => {
    const server = createServer().once("error", fail);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => done(port));
    });
  });
const port = process.argv[2] ? Number(process.argv[2]) : await freePort();
if (!Number.isInteger(port) || port < 1 || port > 65535) throw new Error(`${process.argv[2]} is no port`);
const anvil = spawn(anvilPath, ["--port", String(port), "--silent"], { stdio: "inherit" });
// A chain that ends answers nothing: whoever waits for it would wait in vain.
let isDone = false;
const ended = (how) => {
  if (isDone) return;
  console.error(`anvil on port ${port} ended: ${how}`);
  process.exit(1);
};
anvil.once("error", (error) => ended(error.message)).once("exit", (code, signal) => ended(signal ?? `exit code ${code}`));
let failed = 0;
try {
  const provider = new ethers.JsonRpcProvider(`http://127.0.0.1:${port}`, undefined, { cacheTimeout: -1, polling: true, pollingInterval: 20 });
  for (let tries = 0; ; tries++) {
    try {
      await provider.send("eth_chainId", []);
      break;
    } catch (error) {
      if (tries > 200) throw error;
      await new Promise((done) => setTimeout(done, 50));
    }
  }
  const admin = await provider.getSigner(0);
  const adminAddress = await admin.getAddress();
  const deploy = async (name, ...args) => {
    const made = artefact(name);
    const contract = await new ethers.ContractFactory(made.abi, made.bytecode, admin).deploy(...args);
    await contract.waitForDeployment();
    return contract;
  };
  const home = await nextButOne(admin, adminAddress);
  const token = await deploy("Token", "MAKAI", "MAKAI", vectors.pool, home, [home], [vectors.pool]);
  const signers = vectors.signer_seeds.map(seedKey);
  const terms = [vectors.pool, vectors.halving_epochs, vectors.window_ms / 1000, 1000, adminAddress, adminAddress];
  const none = [ethers.ZeroHash, 0, 0];
  const distributor = await deploy(
    "Distributor", await token.getAddress(), terms, signers.map((signer) => signer.address), vectors.threshold, none,
  );
  if ((await distributor.getAddress()) !== home) throw new Error("the distributor is not where its tokens are");
  const domain = { name: "MAKAI claims", version: "1", chainId: (await provider.getNetwork()).chainId, verifyingContract: await distributor.getAddress() };
  const types = {
    EpochRoot: [
      { name: "epoch", type: "uint64" }, { name: "root", type: "bytes32" }, { name: "total", type: "uint256" },
      { name: "dataHash", type: "bytes32" }, { name: "prevRoot", type: "bytes32" },
    ],
  };
  const posted = new Map();
  let prevRoot = ethers.ZeroHash;
  const outcome = async (call) => {
    try {
      return { value: await call.staticCall(), receipt: await (await call.send()).wait() };
    } catch (error) {
      const data = error.data ?? error.info?.error?.data;
      const named = data ? distributor.interface.parseError(data) : null;
      return { error: named?.name ?? String(error.shortMessage ?? error) };
    }
  };
  const bound = (method, args) => ({ staticCall: () => distributor[method].staticCall(...args), send: () => distributor[method](...args) });
  for (const [at, step] of vectors.steps.entries()) {
    let got;
    if (step.do === "advance") {
      await provider.send("evm_increaseTime", [step.ms / 1000]);
      await provider.send("evm_mine", []);
      continue;
    }
    if (step.do === "propose") {
      const { root } = tree(step.leaves);
      const total = step.total ?? step.leaves.reduce((sum, [, amount]) => sum + BigInt(amount), 0n).toString();
      const message = { epoch: step.epoch, root, total, dataHash: ethers.id("data"), prevRoot };
      const by = step.signed_by.map((seed) => seedKey(seed)).sort((a, b) => (BigInt(a.address) < BigInt(b.address) ? -1 : 1));
      const signatures = [];
      for (const signer of by) signatures.push(await signer.signTypedData(domain, types, message));
      const done = await outcome(bound("propose", [step.epoch, root, total, message.dataHash, prevRoot, signatures]));
      got = done.error ?? "ok";
      if (!done.error) {
        posted.set(step.epoch, { index: posted.size, leaves: step.leaves });
        prevRoot = root;
        console.log(`  propose: ${done.receipt.gasUsed} gas`);
      }
    } else {
      const { index, leaves } = posted.get(step.epoch);
      const leaf = leaves.find(([who]) => who === step.who);
      const done = await outcome(
        bound("claim", [index, vectors.accounts[step.who], step.cumulative ?? leaf[1], tree(leaves).proof(leaf)]),
      );
      got = done.error ?? String(done.value);
      if (!done.error) console.log(`  claim: ${done.receipt.gasUsed} gas`);
    }
    const isRight = got === step.expect;
    failed += isRight ? 0 : 1;
    console.log(`${isRight ? "ok" : "WRONG"} ${at} ${step.do} ${step.epoch} ${step.who ?? ""}: ${got}${isRight ? "" : `, expected ${step.expect}`}`);
  }
  let held = 0n;
  for (const address of Object.values(vectors.accounts)) held += await token.balanceOf(address);
  if (held !== (await distributor.totalClaimed())) failed++;
  failed += await gasOfClaims(deploy, admin, adminAddress, provider);
  provider.destroy();
} finally {
  isDone = true;
  anvil.kill();
}
process.exit(failed > 0 ? 1 : 0);
