"""What sources read with: text files, downloads, documents as streams of pieces."""
