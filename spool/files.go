package spool

import (
	"secretfree/spool/durable"

	bolt "go.etcd.io/bbolt"
)

// disk is what the spool does to its folder; tests make each of it fail.
type disk interface {
	durable.Disk
	// openIndex opens a file of bbolt's, which writes and syncs it by itself.
	openIndex(path string, options *bolt.Options) (*bolt.DB, error)
	// syncIndex is for an index that was written without syncs.
	syncIndex(db *bolt.DB) error
}

type osDisk struct{ durable.OS }

func (osDisk) openIndex(path string, options *bolt.Options) (*bolt.DB, error) {
	return bolt.Open(path, 0o600, options)
}

func (osDisk) syncIndex(db *bolt.DB) error { return db.Sync() }
