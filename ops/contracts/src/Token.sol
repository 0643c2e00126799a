// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Burnable} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Burnable.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ERC20Votes} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Votes.sol";
import {Nonces} from "@openzeppelin/contracts/utils/Nonces.sol";

/// The token. Its constructor makes all of it; nothing can make more.
contract Token is ERC20, ERC20Burnable, ERC20Permit, ERC20Votes {
    /// Never votes, whatever it holds: the distributor, which has nobody to vote for. Every claim is spared the look.
    address public immutable silent;

    error AllocationIsNotTheCap(uint256 allocated, uint256 cap);

    constructor(
        string memory name,
        string memory symbol,
        uint256 cap,
        address silent_,
        address[] memory recipients,
        uint256[] memory amounts
    ) ERC20(name, symbol) ERC20Permit(name) {
        silent = silent_;
        uint256 allocated = 0;
        for (uint256 i = 0; i < recipients.length; i++) {
            allocated += amounts[i];
            _mint(recipients[i], amounts[i]);
        }
        if (allocated != cap || recipients.length != amounts.length) revert AllocationIsNotTheCap(allocated, cap);
    }

    function _update(address from, address to, uint256 value) internal override(ERC20, ERC20Votes) {
        super._update(from, to, value);
    }

    function delegates(address account) public view override returns (address) {
        return account == silent ? address(0) : super.delegates(account);
    }

    function nonces(address owner) public view override(ERC20Permit, Nonces) returns (uint256) {
        return super.nonces(owner);
    }
}
