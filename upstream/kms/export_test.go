package kms

import "time"

// FullBudget lets a client call at the highest rate of its budget from the start.
func FullBudget(c *Client) {
	b := c.policy.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	b.setLocked(time.Now(), b.max)
}
