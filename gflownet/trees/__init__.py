"""The network over block trees and how a policy evaluates actions."""
