// Puts token and distributor of a cluster on a chain.
//
//   makai ledger opening --json > opening.json
//   node deploy.mjs --rpc URL --key FILE --opening opening.json [--recipients FILE] [--name N] [--symbol S] [--bond UNITS]
//
// --key: a file with the private key of the deployer, who pays the gas, and becomes admin and guardian until it hands
// these roles on. --recipients: {"team": "0x..", ..}, an address for each share of the allocation but `mining`, which the
// distributor gets; without it all of them are the deployer's. Prints what goes into every voter's configuration.
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { ethers } from "ethers";

const here = dirname(fileURLToPath(import.meta.url));
const BASIS_POINTS = 10000n;
const text = { type: "string" };
const { values: args } = parseArgs({
  options: { rpc: text, key: text, opening: text, recipients: text, name: text, symbol: text, bond: text },
});
for (const needed of ["rpc", "key", "opening"]) {
  if (args[needed] === undefined) {
    console.error(`--${needed} is missing; the head of this file says what it is`);
    process.exit(2);
  }
}
const opening = JSON.parse(readFileSync(args.opening, "utf8"));
const recipients = args.recipients === undefined ? {} : JSON.parse(readFileSync(args.recipients, "utf8"));
if (opening.chain_id !== 0) {
  console.error(`claims of this cluster are on chain ${opening.chain_id} already; a second contract would pay them again`);
  process.exit(1);
}

const provider = new ethers.JsonRpcProvider(args.rpc, undefined, { cacheTimeout: -1, pollingInterval: 200 });
const key = readFileSync(args.key, "utf8").trim();
const deployer = new ethers.NonceManager(new ethers.Wallet(key.startsWith("0x") ? key : `0x${key}`, provider));
const admin = await deployer.getAddress();

const make = async (name, ...rest) => {
  const made = JSON.parse(readFileSync(join(here, "artifacts", `${name}.json`), "utf8"));
  const contract = await new ethers.ContractFactory(made.abi, made.bytecode, deployer).deploy(...rest);
  await contract.waitForDeployment();
  return contract;
};

// The distributor's share is minted to the address that it gets, which follows from the deployer's next nonce but one: it
// is in nobody's hands.
const home = ethers.getCreateAddress({ from: admin, nonce: (await deployer.getNonce()) + 1 });
const shares = Object.entries(opening.allocation_bp).map(([whose, bp]) => ({
  whose,
  to: whose === "mining" ? home : (recipients[whose] ?? admin),
  amount: (BigInt(opening.cap) * BigInt(bp)) / BASIS_POINTS,
}));
const rest = shares.find((share) => share.whose !== "mining") ?? shares[0];
rest.amount += BigInt(opening.cap) - shares.reduce((sum, share) => sum + share.amount, 0n);
const token = await make(
  "Token", args.name ?? "MAKAI", args.symbol ?? "MAKAI", opening.cap, home,
  shares.map((share) => share.to), shares.map((share) => share.amount),
);
const terms = [opening.pool, opening.halving_epochs, opening.window_secs, args.bond ?? 0, admin, admin];
const distributor = await make(
  "Distributor", await token.getAddress(), terms, opening.signers, opening.threshold,
  [opening.root, opening.epoch, opening.total],
);
if ((await distributor.getAddress()) !== home || (await token.balanceOf(home)) < BigInt(opening.pool)) {
  console.error("something else was sent with this key meanwhile: the distributor is not where its tokens are; deploy again");
  process.exit(1);
}

const { chainId } = await provider.getNetwork();
console.log(`# token ${await token.getAddress()}, admin and guardian ${admin}`);
console.log("[ledger]");
console.log('kind = "evm"');
console.log(`rpc = [${JSON.stringify(args.rpc)}]`);
console.log(`chain_id = ${chainId}`);
console.log(`distributor = "${await distributor.getAddress()}"`);
provider.destroy();
