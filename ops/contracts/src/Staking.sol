// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

/// Two things that are locked: an operator's bond, which proven cheating costs, and a pledge, which shares the platform's
/// income and is never taken.
///
/// A pledge weighs more the longer it lies: `amount * (1 + min(age, ramp) / ramp)`. Income is shared by weight through two
/// sums, `A = sum(Y / W)` and `B = sum(Y * t / W)`, so that no one is walked through. An account that has reached the full
/// ramp keeps a constant weight from when it is touched; anyone may touch it.
contract Staking is AccessControl {
    using SafeERC20 for IERC20;

    struct Bond {
        uint256 amount;
        uint256 leaving;
        uint64 leavesAt;
    }

    struct Pledge {
        uint256 amount;
        uint64 since;
        bool full;
        uint256 a;
        uint256 b;
        uint256 owed;
    }

    struct Charge {
        address operator;
        uint256 amount;
        bytes32 evidenceHash;
        uint64 dueAt;
        bool done;
    }

    bytes32 public constant SLASHER = keccak256("SLASHER");
    uint256 private constant SCALE = 1 << 96;

    IERC20 public immutable token;
    uint64 public immutable unbondingDelay;
    uint64 public immutable slashDelay;
    uint64 public immutable ramp;
    address public immutable slashedTo;

    mapping(address operator => Bond) public bonds;
    mapping(address holder => Pledge) public pledges;
    Charge[] public charges;

    // Weight of all at time t: ramping * (1 - since-weighted / ramp) + ..., kept as amounts and amounts times their start.
    uint256 public rampingAmount;
    uint256 public rampingAmountTimesSince;
    uint256 public fullAmount;
    uint256 public sumA;
    uint256 public sumB;

    event Bonded(address indexed operator, uint256 amount);
    event Unbonding(address indexed operator, uint256 amount, uint64 leavesAt);
    event Charged(uint256 indexed charge, address indexed operator, uint256 amount, bytes32 evidenceHash, uint64 dueAt);
    event Slashed(uint256 indexed charge, uint256 amount);
    event Pledged(address indexed holder, uint256 amount);
    event Income(uint256 amount);

    error TooEarly(uint64 at);
    error TooMuch();
    error NobodyPledges();

    constructor(IERC20 token_, uint64 unbondingDelay_, uint64 slashDelay_, uint64 ramp_, address slashedTo_, address admin) {
        if (unbondingDelay_ < slashDelay_ || ramp_ == 0) revert TooEarly(slashDelay_);
        token = token_;
        unbondingDelay = unbondingDelay_;
        slashDelay = slashDelay_;
        ramp = ramp_;
        slashedTo = slashedTo_;
        _grantRole(DEFAULT_ADMIN_ROLE, admin);
    }

    function bond(uint256 amount) external {
        bonds[msg.sender].amount += amount;
        emit Bonded(msg.sender, amount);
        token.safeTransferFrom(msg.sender, address(this), amount);
    }

    function unbond(uint256 amount) external {
        Bond storage mine = bonds[msg.sender];
        if (amount > mine.amount) revert TooMuch();
        mine.amount -= amount;
        mine.leaving += amount;
        mine.leavesAt = uint64(block.timestamp) + unbondingDelay;
        emit Unbonding(msg.sender, amount, mine.leavesAt);
    }

    function withdrawBond() external {
        Bond storage mine = bonds[msg.sender];
        if (block.timestamp < mine.leavesAt) revert TooEarly(mine.leavesAt);
        uint256 amount = mine.leaving;
        mine.leaving = 0;
        token.safeTransfer(msg.sender, amount);
    }

    /// Evidence is public for `slashDelay` before anything is taken; what is leaving can be taken too.
    function charge(address operator, uint256 amount, bytes32 evidenceHash) external onlyRole(SLASHER) returns (uint256 index) {
        index = charges.length;
        charges.push(Charge(operator, amount, evidenceHash, uint64(block.timestamp) + slashDelay, false));
        emit Charged(index, operator, amount, evidenceHash, uint64(block.timestamp) + slashDelay);
    }

    function slash(uint256 index) external onlyRole(SLASHER) {
        Charge storage found = charges[index];
        if (found.done || block.timestamp < found.dueAt) revert TooEarly(found.dueAt);
        found.done = true;
        Bond storage theirs = bonds[found.operator];
        uint256 fromBond = Math.min(found.amount, theirs.amount);
        uint256 fromLeaving = Math.min(found.amount - fromBond, theirs.leaving);
        theirs.amount -= fromBond;
        theirs.leaving -= fromLeaving;
        emit Slashed(index, fromBond + fromLeaving);
        token.safeTransfer(slashedTo, fromBond + fromLeaving);
    }

    /// Adds to a pledge; its age begins anew.
    function pledge(uint256 amount) external {
        _leave(msg.sender);
        Pledge storage mine = pledges[msg.sender];
        mine.amount += amount;
        _enter(msg.sender);
        emit Pledged(msg.sender, mine.amount);
        token.safeTransferFrom(msg.sender, address(this), amount);
    }

    /// Takes from a pledge; the age of the rest begins anew.
    function unpledge(uint256 amount) external {
        _leave(msg.sender);
        Pledge storage mine = pledges[msg.sender];
        if (amount > mine.amount) revert TooMuch();
        mine.amount -= amount;
        _enter(msg.sender);
        emit Pledged(msg.sender, mine.amount);
        token.safeTransfer(msg.sender, amount);
    }

    function withdrawIncome() external {
        touch(msg.sender);
        uint256 amount = pledges[msg.sender].owed;
        pledges[msg.sender].owed = 0;
        token.safeTransfer(msg.sender, amount);
    }

    /// Shares fees received among pledgers.
    function income(uint256 amount) external {
        uint256 weight = totalWeight();
        if (weight == 0) revert NobodyPledges();
        uint256 each = Math.mulDiv(amount, SCALE, weight);
        sumA += each;
        sumB += each * block.timestamp;
        emit Income(amount);
        token.safeTransferFrom(msg.sender, address(this), amount);
    }

    /// Weights times `ramp`, so that they are whole.
    function totalWeight() public view returns (uint256) {
        uint256 ramping = rampingAmount * (ramp + block.timestamp) - rampingAmountTimesSince;
        return ramping + fullAmount * 2 * ramp;
    }

    /// Settles an account; one whose ramp is over gets its constant weight.
    function touch(address holder) public {
        Pledge storage theirs = pledges[holder];
        _settle(theirs);
        if (!theirs.full && theirs.amount > 0 && block.timestamp >= theirs.since + ramp) {
            rampingAmount -= theirs.amount;
            rampingAmountTimesSince -= theirs.amount * theirs.since;
            fullAmount += theirs.amount;
            theirs.full = true;
        }
    }

    function _settle(Pledge storage theirs) private {
        uint256 a = sumA - theirs.a;
        uint256 b = sumB - theirs.b;
        uint256 share = theirs.full
            ? Math.mulDiv(theirs.amount, a * 2 * ramp, SCALE)
            : Math.mulDiv(theirs.amount, a * ramp + b - a * theirs.since, SCALE);
        theirs.owed += share;
        theirs.a = sumA;
        theirs.b = sumB;
    }

    function _leave(address holder) private {
        Pledge storage theirs = pledges[holder];
        _settle(theirs);
        if (theirs.full) {
            fullAmount -= theirs.amount;
        } else {
            rampingAmount -= theirs.amount;
            rampingAmountTimesSince -= theirs.amount * theirs.since;
        }
    }

    function _enter(address holder) private {
        Pledge storage theirs = pledges[holder];
        theirs.full = false;
        theirs.since = uint64(block.timestamp);
        rampingAmount += theirs.amount;
        rampingAmountTimesSince += theirs.amount * theirs.since;
    }
}
