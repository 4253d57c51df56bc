"""Log-probs of packed trees and gradients of the weights."""
