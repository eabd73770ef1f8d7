package kms

import (
	"net/http"
	"time"
)

// FullBudget lets a client call at the highest rate of its budget from the start.
func FullBudget(c *Client) {
	b := c.policy.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	b.setLocked(time.Now(), b.max)
}

// Offers reports whether the first endpoint can be watched after an answer with header h.
func Offers(c *Client, h http.Header) bool {
	c.noteOffer(c.policy.endpoints[0], h)
	return c.policy.endpoints[0].offer.Load() != nil
}
