// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AccessControl} from "@openzeppelin/contracts/access/AccessControl.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

/// Pays for work: cumulative claims against roots that most signers signed.
///
/// Always: the sum of what is paid never exceeds the newest active total, totals never fall and never exceed the emission
/// until their epoch, so that signers who all lie take at most what was emitted and not paid, and only after the window;
/// a root that is disputed or revoked stops itself and those after it, never those before.
contract Distributor is EIP712, AccessControl {
    using SafeERC20 for IERC20;

    /// As stored: what a claim reads lies in the first two words.
    struct Posted {
        bytes32 root;
        uint128 total;
        uint64 epoch;
        uint48 activeAt;
        bool disabled;
        bytes32 dataHash;
    }

    struct Root {
        bytes32 root;
        bytes32 dataHash;
        uint256 total;
        uint64 epoch;
        uint64 activeAt;
        bool disabled;
    }

    /// What never changes.
    struct Terms {
        uint256 pool;
        uint64 halvingEpochs;
        uint64 window;
        uint256 disputeBond;
        address admin;
        address guardian;
    }

    struct Opening {
        bytes32 root;
        uint64 epoch;
        uint256 total;
    }

    struct Dispute {
        address by;
        uint256 bond;
        bool open;
    }

    /// May revoke a root within its window.
    bytes32 public constant GUARDIAN = keccak256("GUARDIAN");
    bytes32 private constant EPOCH_ROOT =
        keccak256("EpochRoot(uint64 epoch,bytes32 root,uint256 total,bytes32 dataHash,bytes32 prevRoot)");
    uint64 public constant WINDOW_MAX = 30 days;

    IERC20 public immutable token;
    uint256 public immutable firstEmission;
    uint64 public immutable halvingEpochs;
    uint256 public immutable pool;
    uint64 public immutable window;
    uint256 public immutable disputeBond;

    mapping(uint256 index => Posted) private _roots;
    uint256 private _rootCount;
    mapping(uint256 index => Dispute) public disputes;
    mapping(address account => uint256) public claimed;
    uint256 public totalClaimed;
    address[] private _signers;
    mapping(address signer => bool) public isSigner;
    uint256 public threshold;

    event Proposed(uint256 indexed index, uint64 indexed epoch, bytes32 root, uint256 total, bytes32 dataHash, uint64 activeAt);
    event Disabled(uint256 indexed index);
    event Disputed(uint256 indexed index, address indexed by, string reason);
    event DisputeResolved(uint256 indexed index, bool upheld);
    event Claimed(address indexed account, uint256 amount, uint256 cumulative);
    event SignersChanged(address[] signers, uint256 threshold);

    error AlreadyProposed(uint64 epoch);
    error TotalFalls(uint256 total, uint256 before);
    error OverEmission(uint256 total, uint256 allowed);
    error NotEnoughSignatures(uint256 good, uint256 needed);
    error NotActive(uint256 index);
    error BadProof();
    error NothingToClaim(address account);
    error WindowOver(uint256 index);
    error WrongDispute(uint256 index);
    error BadSigners();
    error NotADecrease();

    constructor(IERC20 token_, Terms memory terms, address[] memory signers_, uint256 threshold_, Opening memory opening)
        EIP712("MAKAI claims", "1")
    {
        if (terms.halvingEpochs == 0 || terms.window > WINDOW_MAX) revert BadSigners();
        token = token_;
        pool = terms.pool;
        halvingEpochs = terms.halvingEpochs;
        firstEmission = terms.pool / (2 * uint256(terms.halvingEpochs));
        window = terms.window;
        disputeBond = terms.disputeBond;
        _grantRole(DEFAULT_ADMIN_ROLE, terms.admin);
        _grantRole(GUARDIAN, terms.guardian);
        _setSigners(signers_, threshold_);
        // What an embedded ledger came to before: its accounts claim here from the first moment.
        if (opening.root != bytes32(0)) {
            _push(opening.epoch, opening.root, opening.total, bytes32(0), block.timestamp);
        }
    }

    /// Of the first `number` epochs together.
    function emissionUntil(uint64 number) public view returns (uint256 sum) {
        uint256 each = firstEmission;
        uint64 left = number;
        while (left > 0 && each > 0) {
            uint64 epochs = left < halvingEpochs ? left : halvingEpochs;
            sum += each * epochs;
            left -= epochs;
            each >>= 1;
        }
        if (sum > pool) sum = pool;
    }

    function roots(uint256 index) external view returns (Root memory) {
        Posted storage root = _roots[index];
        return Root(root.root, root.dataHash, root.total, root.epoch, root.activeAt, root.disabled);
    }

    function rootCount() external view returns (uint256) {
        return _rootCount;
    }

    function signers() external view returns (address[] memory) {
        return _signers;
    }

    /// Anyone may bring what signers signed. `signatures` in ascending order of their signers. Epochs may be left out: the
    /// later root holds all that the earlier ones held. `prevRoot` is the signers' own root before, posted or not.
    function propose(
        uint64 epoch,
        bytes32 root,
        uint256 total,
        bytes32 dataHash,
        bytes32 prevRoot,
        bytes[] calldata signatures
    ) external {
        (uint64 lastEpoch, uint256 lastTotal) = _newest();
        if (epoch <= lastEpoch) revert AlreadyProposed(epoch);
        if (total < lastTotal) revert TotalFalls(total, lastTotal);
        uint256 allowed = emissionUntil(epoch);
        if (total > allowed) revert OverEmission(total, allowed);
        bytes32 digest = _hashTypedDataV4(
            keccak256(abi.encode(EPOCH_ROOT, epoch, root, total, dataHash, prevRoot))
        );
        uint256 good = 0;
        address before = address(0);
        for (uint256 i = 0; i < signatures.length; i++) {
            (address signer, ECDSA.RecoverError fault,) = ECDSA.tryRecover(digest, signatures[i]);
            if (fault == ECDSA.RecoverError.NoError && signer > before && isSigner[signer]) {
                good++;
                before = signer;
            }
        }
        if (good < threshold) revert NotEnoughSignatures(good, threshold);
        _push(epoch, root, total, dataHash, block.timestamp + window);
    }

    /// Pays what `account` may claim and has not. Anyone may ask: only the account is paid.
    function claim(uint256 index, address account, uint256 cumulative, bytes32[] calldata proof) external returns (uint256 amount) {
        if (!isActive(index)) revert NotActive(index);
        Posted storage root = _roots[index];
        if (_lead(proof, _leaf(account, cumulative)) != root.root) revert BadProof();
        uint256 paid = claimed[account];
        uint256 before = totalClaimed;
        amount = cumulative > paid ? cumulative - paid : 0;
        // Most claims fit the total of their own root, and cost the same however many roots wait.
        uint256 after_ = before + amount;
        if (after_ > root.total) {
            uint256 room = activeTotal() - before;
            if (amount > room) amount = room;
            after_ = before + amount;
        }
        if (amount == 0) revert NothingToClaim(account);
        uint256 all = paid + amount;
        claimed[account] = all;
        totalClaimed = after_;
        emit Claimed(account, amount, all);
        token.safeTransfer(account, amount);
    }

    /// A root under dispute is disabled, and so never active; one that was never posted has no time.
    function isActive(uint256 index) public view returns (bool) {
        Posted storage root = _roots[index];
        (uint256 activeAt, bool disabled) = (root.activeAt, root.disabled);
        return activeAt != 0 && block.timestamp >= activeAt && !disabled;
    }

    /// The total of the newest active root; never below what was paid.
    function activeTotal() public view returns (uint256) {
        for (uint256 i = _rootCount; i > 0; i--) {
            if (isActive(i - 1)) return _roots[i - 1].total > totalClaimed ? _roots[i - 1].total : totalClaimed;
        }
        return totalClaimed;
    }

    /// Stops a root and all after it until the admin decides; the bond is lost where it was wrong.
    function dispute(uint256 index, string calldata reason) external {
        if (index >= _rootCount || block.timestamp >= _roots[index].activeAt) revert WindowOver(index);
        if (disputes[index].by != address(0) || _roots[index].disabled) revert WrongDispute(index);
        disputes[index] = Dispute(msg.sender, disputeBond, true);
        emit Disputed(index, msg.sender, reason);
        token.safeTransferFrom(msg.sender, address(this), disputeBond);
        _disableFrom(index);
    }

    function resolve(uint256 index, bool upheld) external onlyRole(DEFAULT_ADMIN_ROLE) {
        Dispute storage found = disputes[index];
        if (!found.open) revert WrongDispute(index);
        found.open = false;
        emit DisputeResolved(index, upheld);
        if (upheld) {
            token.safeTransfer(found.by, found.bond);
        } else {
            // The signers were right: the root counts after a window of its own. The bond stays for miners.
            _roots[index].disabled = false;
            _roots[index].activeAt = uint48(block.timestamp + window);
        }
    }

    function revoke(uint256 index) external onlyRole(GUARDIAN) {
        if (index >= _rootCount || block.timestamp >= _roots[index].activeAt) revert WindowOver(index);
        _disableFrom(index);
    }

    /// A leaf that is smaller in a later root needs no judge: two proofs stop that root while it waits.
    function disputeDecrease(
        uint256 older,
        uint256 newer,
        address account,
        uint256 was,
        bytes32[] calldata wasProof,
        uint256 becomes,
        bytes32[] calldata becomesProof
    ) external {
        if (block.timestamp >= _roots[newer].activeAt) revert WindowOver(newer);
        bool proved = older < newer && becomes < was && _lead(wasProof, _leaf(account, was)) == _roots[older].root
            && _lead(becomesProof, _leaf(account, becomes)) == _roots[newer].root;
        if (!proved || _roots[older].disabled) revert NotADecrease();
        _disableFrom(newer);
    }

    /// Of OpenZeppelin's standard tree: hashed twice, so that no inner node is one.
    function _leaf(address account, uint256 cumulative) private pure returns (bytes32 leaf) {
        assembly ("memory-safe") {
            mstore(0x00, account)
            mstore(0x20, cumulative)
            mstore(0x00, keccak256(0x00, 0x40))
            leaf := keccak256(0x00, 0x20)
        }
    }

    /// The root to which a proof leads: as OpenZeppelin's MerkleProof, the smaller of two nodes first, for less than half its
    /// gas. Only the scratch space of memory is written.
    function _lead(bytes32[] calldata proof, bytes32 leaf) private pure returns (bytes32 node) {
        node = leaf;
        assembly ("memory-safe") {
            let end := add(proof.offset, shl(5, proof.length))
            for { let at := proof.offset } lt(at, end) { at := add(at, 0x20) } {
                let sibling := calldataload(at)
                let place := shl(5, gt(node, sibling))
                mstore(place, node)
                mstore(xor(place, 0x20), sibling)
                node := keccak256(0x00, 0x40)
            }
        }
    }

    function setSigners(address[] calldata signers_, uint256 threshold_) external onlyRole(DEFAULT_ADMIN_ROLE) {
        for (uint256 i = 0; i < _signers.length; i++) isSigner[_signers[i]] = false;
        _setSigners(signers_, threshold_);
    }

    function _setSigners(address[] memory signers_, uint256 threshold_) private {
        if (threshold_ <= signers_.length / 2 || threshold_ > signers_.length) revert BadSigners();
        for (uint256 i = 0; i < signers_.length; i++) {
            if (signers_[i] == address(0) || isSigner[signers_[i]]) revert BadSigners();
            isSigner[signers_[i]] = true;
        }
        _signers = signers_;
        threshold = threshold_;
        emit SignersChanged(signers_, threshold_);
    }

    /// Of the newest root that counts; zeros where there is none.
    function _newest() private view returns (uint64 epoch, uint256 total) {
        for (uint256 i = _rootCount; i > 0; i--) {
            Posted storage root = _roots[i - 1];
            if (!root.disabled) return (root.epoch, root.total);
        }
    }

    function _push(uint64 epoch, bytes32 root, uint256 total, bytes32 dataHash, uint256 activeAt) private {
        uint256 index = _rootCount++;
        _roots[index] = Posted(root, SafeCast.toUint128(total), epoch, SafeCast.toUint48(activeAt), false, dataHash);
        emit Proposed(index, epoch, root, total, dataHash, uint64(activeAt));
    }

    function _disableFrom(uint256 index) private {
        for (uint256 i = index; i < _rootCount; i++) {
            if (!_roots[i].disabled) {
                _roots[i].disabled = true;
                emit Disabled(i);
            }
        }
    }
}
