// Small things done to a chain, for tests of the daemon:
//   node chain.mjs deploy URL POOL HALVING WINDOW_SECS THRESHOLD SIGNER,.. FUNDED,..   -> {"token", "distributor"}
//   node chain.mjs balance URL TOKEN ACCOUNT                                           -> base units
//   node chain.mjs fund URL ACCOUNT,..
//   node chain.mjs reorg URL DEPTH
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { ethers } from "ethers";

const here = dirname(fileURLToPath(import.meta.url));
const artefact = (name) => JSON.parse(readFileSync(join(here, "..", "artifacts", `${name}.json`), "utf8"));
const [what, url, ...rest] = process.argv.slice(2);
const provider = new ethers.JsonRpcProvider(url, undefined, { cacheTimeout: -1, pollingInterval: 50, staticNetwork: ethers.Network.from(31337) });

async function fund(accounts) {
  for (const account of accounts.split(",")) await provider.send("anvil_setBalance", [account, "0x56BC75E2D63100000"]);
}

async function deploy(pool, halving, window, threshold, signers, funded) {
  const admin = await provider.getSigner(0);
  const adminAddress = await admin.getAddress();
  const make = async (name, ...args) => {
    const made = artefact(name);
    const contract = await new ethers.ContractFactory(made.abi, made.bytecode, admin).deploy(...args);
    await contract.waitForDeployment();
    return contract;
  };
  const home = ethers.getCreateAddress({ from: adminAddress, nonce: (await admin.getNonce()) + 1 });
  const token = await make("Token", "MAKAI", "MAKAI", pool, home, [home], [pool]);
  const terms = [pool, halving, window, 0, adminAddress, adminAddress];
  const distributor = await make(
    "Distributor", await token.getAddress(), terms, signers.split(","), threshold, [ethers.ZeroHash, 0, 0],
  );
  if ((await distributor.getAddress()) !== home) throw new Error("the distributor is not where its tokens are");
  await fund(funded);
  console.log(JSON.stringify({ token: await token.getAddress(), distributor: await distributor.getAddress() }));
}

switch (what) {
  case "deploy":
    await deploy(...rest);
    break;
  case "balance":
    console.log(String(await new ethers.Contract(rest[0], artefact("Token").abi, provider).balanceOf(rest[1])));
    break;
  case "fund":
    await fund(rest[0]);
    break;
  case "reorg":
    await provider.send("anvil_reorg", [Number(rest[0]), []]);
    break;
  default:
    console.error("deploy, balance, fund or reorg");
    process.exitCode = 2;
}
provider.destroy();
