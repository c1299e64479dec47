"""What each revision changes. One that was released is never edited: its successor mends it."""
